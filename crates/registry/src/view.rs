//! Several questions answered from one state of the registry.

use rusqlite::Transaction;

use crate::error::RegistryError;
use crate::open::Registry;

/// While it lives, what others commit is not seen.
#[derive(Debug)]
#[must_use]
pub struct View<'a> {
    _state: Option<Transaction<'a>>,
}

impl Registry {
    /// Several questions to one state: what another command commits between them is not seen.
    pub(crate) fn in_one_view<T>(
        &self,
        ask: impl FnOnce() -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let _view = self.open_view()?;
        ask()
    }

    /// As long as this lives, all questions are answered from one state, which is also faster: each question by itself
    /// takes a lock and gives it back. Others may change the registry meanwhile; their log cannot be used anew until then,
    /// so nothing slow belongs between the questions.
    pub fn view(&self) -> Result<View<'_>, RegistryError> {
        self.open_view().map_err(self.failed("read"))
    }

    /// Within a change, or another view, that one's state is the state.
    fn open_view(&self) -> rusqlite::Result<View<'_>> {
        let is_new = self.connection.is_autocommit();
        let state = is_new.then(|| self.connection.unchecked_transaction()).transpose()?;
        Ok(View { _state: state })
    }
}
