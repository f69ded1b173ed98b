//! An error and its causes in words, for whoever tells a person: commands, the worker's log, records of what failed.

use std::error::Error;

/// One sentence, from what failed to why. A cause that only repeats what was said is passed over.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Failed(&'static str, Option<Box<Failed>>);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as &dyn Error)
        }
    }

    #[test]
    fn every_cause_is_told_once() {
        let disk = Failed("disk on fire", None);
        let again = Failed("disk on fire", Some(Box::new(disk)));
        let error = Failed("the registry cannot be opened", Some(Box::new(again)));
        assert_eq!(chain(&error), "the registry cannot be opened: disk on fire");
    }
}
