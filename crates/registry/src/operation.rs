//! The record of what was done: one row for each changing command. It outlives the guests it tells of, and is bounded.

use std::time::Duration;

use hpvm_model::{GuestConfig, GuestName, GuestUuid};
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Row, Statement, params};

use crate::change::Change;
use crate::error::RegistryError;
use crate::guest::{parsed, timestamp, uuid, wrong};
use crate::open::{Registry, Written};
use crate::portable;

/// As many records as are kept.
const KEPT_MAX: i64 = 10_000;
/// As old as the oldest may grow.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(2 * 365 * 24);
/// As many as one record looks at to find old ones: more than one, so that they go faster than they come.
const AGED_PER_RECORD: i64 = 16;

/// One thing an administrator did or tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub at: Timestamp,
    pub uid: u32,
    pub user: String,
    /// The terminal, host or program it came from.
    pub from: String,
    pub command_line: String,
    /// `--reason`.
    pub reason: Option<String>,
    pub guest: Option<Subject>,
    pub before: Option<GuestConfig>,
    pub after: Option<GuestConfig>,
    pub outcome: Outcome,
    pub duration: Duration,
    /// The last step it passed, where that matters.
    pub step: Option<String>,
}

/// The guest an operation was about, as it was called then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub uuid: GuestUuid,
    pub name: GuestName,
}

/// How an operation ended, or who is at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// If this process is no more, the operation was interrupted.
    Running(Owner),
    Done,
    Failed(String),
}

/// A process that cannot be mistaken for a later one with the same number. Whether it lives is the caller's to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub start_time: u64,
    pub boot_id: String,
}

/// An operation's place in the record; later ones are higher, and none is given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub i64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedOperation {
    pub id: OperationId,
    pub operation: Operation,
}

impl Outcome {
    /// Whether its process ended without saying how the operation ended.
    pub fn was_interrupted(&self, is_alive: impl FnOnce(&Owner) -> bool) -> bool {
        match self {
            Outcome::Running(owner) => !is_alive(owner),
            Outcome::Done | Outcome::Failed(_) => false,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Outcome::Running(_) => "running",
            Outcome::Done => "done",
            Outcome::Failed(_) => "failed",
        }
    }

    fn error(&self) -> Option<&str> {
        match self {
            Outcome::Failed(error) => Some(error),
            _ => None,
        }
    }

    fn owner(&self) -> Option<&Owner> {
        match self {
            Outcome::Running(owner) => Some(owner),
            _ => None,
        }
    }
}

impl Registry {
    /// Records an operation that changed no configuration: a start, a stop, a refusal. Every reader sees it from now on; it
    /// is on the disk with the next change at the latest, so that a power cut may take it away, as it takes the guest's run.
    pub fn record(&mut self, operation: &Operation) -> Result<OperationId, RegistryError> {
        self.at_ease(|registry| {
            let change = registry.change_as_it_is()?;
            let id = change.record(operation)?;
            change.commit_as(Written::Note)?;
            Ok(id)
        })
    }

    /// A change that no power cut need find on the disk.
    fn at_ease<T>(
        &mut self,
        change: impl FnOnce(&mut Registry) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        self.synchronous("normal")?;
        let changed = change(self);
        self.synchronous("full")?;
        changed
    }

    fn synchronous(&self, level: &'static str) -> Result<(), RegistryError> {
        self.connection
            .pragma_update(None, "synchronous", level)
            .map_err(self.failed("record an operation"))
    }

    /// Says how an operation that was recorded as running ended, in a change of its own. A power cut may take that away: who
    /// finds the operation unfinished then, finds out that all of it is done.
    pub fn finish(&mut self, id: OperationId, ended: &Operation) -> Result<(), RegistryError> {
        self.at_ease(|registry| {
            let change = registry.change()?;
            change.finish(id, ended)?;
            change.commit()
        })
    }

    /// The last operations, newest first: of one guest, or of all.
    pub fn operations(
        &self,
        guest: Option<GuestUuid>,
        limit: usize,
    ) -> Result<Vec<RecordedOperation>, RegistryError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = match guest {
            Some(GuestUuid(uuid)) => self.rows(
                &format!("SELECT {COLUMNS} FROM operation WHERE guest_uuid = ?1 ORDER BY id DESC LIMIT ?2"),
                params![uuid.into_bytes(), limit],
                recorded,
            ),
            None => self.rows(
                &format!("SELECT {COLUMNS} FROM operation ORDER BY id DESC LIMIT ?1"),
                [limit],
                recorded,
            ),
        };
        rows.map_err(self.failed("read the operations"))
    }

    /// The operations that nobody has finished, newest first: each is under way or was interrupted.
    pub fn unfinished(&self) -> Result<Vec<RecordedOperation>, RegistryError> {
        let sql =
            format!("SELECT {COLUMNS} FROM operation WHERE result = 'running' ORDER BY id DESC");
        self.rows(&sql, [], recorded).map_err(self.failed("read the operations"))
    }
}

impl Change<'_> {
    /// Records an operation: with its end, or as running until [`Change::finish`].
    pub fn record(&self, operation: &Operation) -> Result<OperationId, RegistryError> {
        let sql =
            "INSERT INTO operation (at, uid, user, from_where, command_line, reason, guest_uuid,
                 guest_name, before, after, result, error, duration_ms, step,
                 owner_pid, owner_start_time, owner_boot_id)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| {
                bind(&mut statement, operation)?;
                statement.raw_execute()?;
                let id = self.connection.last_insert_rowid();
                self.trim(id, operation.at)?;
                Ok(OperationId(id))
            })
            .map_err(self.failed("record an operation"))
    }

    /// Replaces a record by what is known at the operation's end.
    pub fn finish(&self, id: OperationId, ended: &Operation) -> Result<(), RegistryError> {
        let sql =
            "UPDATE operation SET at = ?, uid = ?, user = ?, from_where = ?, command_line = ?,
                 reason = ?, guest_uuid = ?, guest_name = ?, before = ?, after = ?, result = ?,
                 error = ?, duration_ms = ?, step = ?,
                 owner_pid = ?, owner_start_time = ?, owner_boot_id = ?
             WHERE id = ?";
        let changed = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut statement| {
                bind(&mut statement, ended)?;
                statement.raw_bind_parameter(PARAMETERS + 1, id.0)?;
                statement.raw_execute()
            })
            .map_err(self.failed("record an operation"))?;
        match changed {
            0 => Err(RegistryError::NoOperation(id.0)),
            _ => Ok(()),
        }
    }

    /// Looks at the oldest rows alone, so that a record costs the same at any length.
    fn trim(&self, newest: i64, now: Timestamp) -> rusqlite::Result<()> {
        let aged = now.saturating_sub(AGE_MAX).unwrap_or(Timestamp::MIN).as_millisecond();
        let mut oldest =
            self.connection.prepare_cached("SELECT id, at FROM operation ORDER BY id LIMIT 1")?;
        let (oldest, at): (i64, i64) =
            oldest.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let too_many = newest - KEPT_MAX;
        if oldest <= too_many {
            self.connection
                .prepare_cached("DELETE FROM operation WHERE id <= ?1")?
                .execute([too_many])?;
        }
        if at < aged {
            self.connection
                .prepare_cached("DELETE FROM operation WHERE id < ?1 AND at < ?2")?
                .execute([oldest.max(too_many) + AGED_PER_RECORD, aged])?;
        }
        Ok(())
    }
}

const COLUMNS: &str = "id, at, uid, user, from_where, command_line, reason, guest_uuid, guest_name, before, \
     after, result, error, duration_ms, step, owner_pid, owner_start_time, owner_boot_id";

/// As many as the columns, but for the id.
const PARAMETERS: usize = 17;

fn bind(statement: &mut Statement<'_>, operation: &Operation) -> rusqlite::Result<()> {
    let guest = operation.guest.as_ref();
    let owner = operation.outcome.owner();
    let duration_ms = i64::try_from(operation.duration.as_millis()).unwrap_or(i64::MAX);
    let values: [&dyn rusqlite::ToSql; PARAMETERS] = [
        &operation.at.as_millisecond(),
        &operation.uid,
        &operation.user,
        &operation.from,
        &operation.command_line,
        &operation.reason,
        &guest.map(|guest| guest.uuid.0.into_bytes()),
        &guest.map(|guest| guest.name.as_str()),
        &operation.before.as_ref().map(portable::line),
        &operation.after.as_ref().map(portable::line),
        &operation.outcome.word(),
        &operation.outcome.error(),
        &duration_ms,
        &operation.step,
        &owner.map(|owner| owner.pid),
        &owner.map(|owner| owner.start_time.cast_signed()),
        &owner.map(|owner| owner.boot_id.as_str()),
    ];
    for (position, value) in (1..).zip(values) {
        statement.raw_bind_parameter(position, value)?;
    }
    Ok(())
}

fn recorded(row: &Row<'_>) -> rusqlite::Result<RecordedOperation> {
    let duration_ms = u64::try_from(row.get::<_, i64>(13)?).map_err(|e| wrong(13, e))?;
    let operation = Operation {
        at: timestamp(row, 1)?,
        uid: row.get(2)?,
        user: row.get(3)?,
        from: row.get(4)?,
        command_line: row.get(5)?,
        reason: row.get(6)?,
        guest: subject(row)?,
        before: configuration(row, 9)?,
        after: configuration(row, 10)?,
        outcome: outcome(row)?,
        duration: Duration::from_millis(duration_ms),
        step: row.get(14)?,
    };
    Ok(RecordedOperation { id: OperationId(row.get(0)?), operation })
}

fn subject(row: &Row<'_>) -> rusqlite::Result<Option<Subject>> {
    match row.get_ref(7)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => Ok(Some(Subject { uuid: uuid(row, 7)?, name: parsed(row, 8)? })),
    }
}

fn configuration(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<GuestConfig>> {
    match row.get_ref(column)?.as_str_or_null().map_err(|e| wrong(column, e))? {
        Some(text) => portable::read(text).map(Some).map_err(|e| wrong(column, e)),
        None => Ok(None),
    }
}

fn outcome(row: &Row<'_>) -> rusqlite::Result<Outcome> {
    let result: String = row.get(11)?;
    match result.as_str() {
        "done" => Ok(Outcome::Done),
        "failed" => Ok(Outcome::Failed(row.get::<_, Option<String>>(12)?.unwrap_or_default())),
        _ => Ok(Outcome::Running(Owner {
            pid: row.get(15)?,
            start_time: row.get::<_, i64>(16)?.cast_unsigned(),
            boot_id: row.get(17)?,
        })),
    }
}
