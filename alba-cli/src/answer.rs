//! What a command gives: once as text for people, once as JSON for programs (interfaces §3).

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Value, json};

use crate::error::CliError;

/// A command's result.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// For programs.
    pub(crate) result: Value,
    /// For people; nothing when empty.
    pub(crate) text: String,
    /// The exit code of a command that worked: 0 but for `alba status`.
    pub(crate) exit: u8,
    /// It was printed already: the command went on after that.
    pub(crate) printed: bool,
}

impl Answer {
    /// A result with its text.
    pub(crate) fn new(result: impl Serialize, text: impl Into<String>) -> Result<Self, CliError> {
        let result = serde_json::to_value(result)
            .map_err(|error| CliError::failure(format!("the result is no JSON: {error}")))?;
        Ok(Self { result, text: text.into(), exit: 0, printed: false })
    }

    /// It worked, and there is nothing else to say to programs.
    pub(crate) fn done(text: impl Into<String>) -> Self {
        Self { result: Value::Null, text: text.into(), exit: 0, printed: false }
    }
}

/// Where answers go, and in which form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON object instead of text.
    pub(crate) json: bool,
}

impl Output {
    /// Prints a result now.
    pub(crate) fn print(self, answer: &Answer) {
        if self.json {
            line(&json!({ "success": true, "result": answer.result }).to_string());
        } else if !answer.text.is_empty() {
            line(answer.text.trim_end_matches('\n'));
        }
    }

    /// Prints a result, unless it was, and gives the exit code.
    pub(crate) fn succeed(self, answer: &Answer) -> ExitCode {
        if !answer.printed {
            self.print(answer);
        }
        ExitCode::from(answer.exit)
    }

    /// Prints a failure and gives the exit code.
    pub(crate) fn fail(self, error: &CliError) -> ExitCode {
        if self.json {
            line(&envelope(error).to_string());
        } else {
            note(&format!("alba: {}", error.message));
        }
        ExitCode::from(error.exit)
    }
}

/// The failure form of the envelope.
fn envelope(error: &CliError) -> Value {
    json!({
        "success": false,
        "error": {
            "message": error.message,
            "exception_type": error.kind.name(),
            "exception_code": error.code,
        },
    })
}

/// A line on standard output. A reader that went away (`| head`) is no failure of ours.
fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// A line on standard error: for people, whatever the form of the result.
pub(crate) fn note(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_message_type_and_code() {
        let error = CliError::failure("no luck");
        let want = r#"{"error":{"exception_code":0,"exception_type":"unknown","message":"no luck"},"success":false}"#;
        assert_eq!(envelope(&error).to_string(), want);
    }
}
