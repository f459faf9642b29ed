//! How the process gives up: one line for people on stderr, one termination message for the operator.

use std::{fmt, fs, path::Path, sync::OnceLock};

use candela_wire::termination::{ExitReason, TerminationMessage};
use tracing::{error, warn};

/// The process cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fatal {
    pub reason: ExitReason,
    pub message: String,
}

impl Fatal {
    pub fn new(reason: ExitReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::new(ExitReason::InvalidConfiguration, message)
    }
}

/// An error with its causes, none said twice.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        write!(out, "{said}")?;
        let mut cause = self.0.source();
        while let Some(err) = cause {
            let text = err.to_string();
            if !said.ends_with(&text) {
                write!(out, ": {text}")?;
                said = text;
            }
            cause = err.source();
        }
        Ok(())
    }
}

/// Writes the termination message; that it cannot be written is worth a line, not another failure.
pub(crate) fn report(fatal: &Fatal, termination_log: &Path) {
    error!(reason = ?fatal.reason, "{}", fatal.message);
    let message = TerminationMessage { reason: fatal.reason, message: fatal.message.clone() };
    if let Err(err) = fs::write(termination_log, message.to_json()) {
        warn!(path = %termination_log.display(), %err, "cannot write the termination message");
    }
}

/// From here on a panic ends the process with `EngineCrashed`, on whichever thread: a half-dead server that still
/// answers its probes is worse than a restart. Those that the engine contains are logged and unwind.
pub(crate) fn exit_on_panic(termination_log: &Path) {
    static REPORTED: OnceLock<()> = OnceLock::new();
    let path = termination_log.to_owned();
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        let place = info.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        let what = info.payload_as_str().unwrap_or("no message");
        // Somebody up the stack answers for it: one request (or a load) fails, and says so.
        if candela_engine::panic_is_contained() {
            error!("a panic{place} is contained: {what}");
            return;
        }
        // A second thread may panic while the first one is on its way out.
        if REPORTED.set(()).is_ok() {
            let message = format!("a fault of the server: panicked{place}: {what}; please report it");
            report(&Fatal::new(ExitReason::EngineCrashed, message), &path);
            std::process::exit(70);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot fetch: {0}")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("no route to `hub`")]
    struct Inner;

    #[test]
    fn a_cause_is_said_once() {
        assert_eq!(Chain(&Outer(Inner)).to_string(), "cannot fetch: no route to `hub`");
    }

    #[test]
    fn the_operator_can_read_the_report() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let fatal = Fatal::new(ExitReason::WeightsNotFound, "no `x`");
        report(&fatal, &path);
        let read = TerminationMessage::parse(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!((read.reason, read.message.as_str()), (ExitReason::WeightsNotFound, "no `x`"));
    }

    const CHILD: &str = "CANDELA_TEST_PANIC_LOG";

    /// Does nothing unless the next test starts it in a process of its own.
    #[test]
    fn panics_in_a_child() {
        let Some(path) = std::env::var_os(CHILD) else { return };
        exit_on_panic(Path::new(&path));
        let _ = std::thread::spawn(|| panic!("on purpose")).join();
        unreachable!("the process is gone by now");
    }

    #[test]
    fn a_panic_on_any_thread_ends_the_process_with_a_report() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "exit::tests::panics_in_a_child"]).env(CHILD, &path);
        let exited = child.output().unwrap();
        assert_eq!(exited.status.code(), Some(70));
        let read = TerminationMessage::parse(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(read.reason, ExitReason::EngineCrashed);
        assert!(read.message.contains("on purpose"), "{}", read.message);
    }
}
