//! Runs other programs and explains their failures.

use std::{
    fmt::Write as _,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use crate::interrupt;

/// Lines of a failed program's output that the error repeats.
const TAIL_LINES: usize = 20;
/// Tools and the Debian package each comes in.
const PACKAGES: [(&str, &str); 18] = [
    ("/usr/lib/apt/apt-helper", "apt"),
    ("apt-get", "apt"),
    ("bc", "bc"),
    ("bison", "bison"),
    ("cargo", "rustup (https://rustup.rs)"),
    ("dpkg-deb", "dpkg"),
    ("flex", "flex"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("lz4", "lz4"),
    ("make", "make"),
    ("patch", "patch"),
    ("prlimit", "util-linux"),
    ("python3", "python3-pip"),
    ("strip", "binutils"),
    ("tar", "tar"),
    ("unshare", "util-linux"),
    ("xz", "xz-utils"),
];

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed.
    #[error("`{tool}` is missing; on Debian: apt-get install {package}")]
    MissingTool {
        /// The program.
        tool: String,
        /// Where it is from.
        package: &'static str,
    },
    /// It could not be started, or its output not be kept.
    #[error("cannot run `{tool}`")]
    Start {
        /// The program.
        tool: String,
        /// Why.
        source: io::Error,
    },
    /// It failed.
    #[error("`{line}` failed ({status}){output}")]
    Failed {
        /// The command line.
        line: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said, ready for printing.
        output: String,
    },
}

/// Runs a command to its end, or until this program is told to end. Its output goes to `log`, or into the error if it fails.
///
/// # Errors
/// See [`CommandError`].
pub fn run(command: &mut Command, log: Option<&Path>) -> Result<String, CommandError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let start = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => CommandError::MissingTool {
            package: package(&tool),
            tool: tool.clone(),
        },
        _ => CommandError::Start {
            tool: tool.clone(),
            source,
        },
    };
    command.stdin(Stdio::null());
    let (status, stdout, text) = match log {
        None => {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let output = interrupt::run(command).map_err(start)?;
            let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
            let text = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
            (output.status, stdout, text)
        }
        Some(path) => {
            let keep = |source| CommandError::Start {
                tool: format!("{tool} > {}", path.display()),
                source,
            };
            let file = File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(keep)?;
            let second = file.try_clone().map_err(keep)?;
            let output = interrupt::run(command.stdout(file).stderr(second)).map_err(start)?;
            let text = std::fs::read(path).map_err(keep)?;
            let text = String::from_utf8_lossy(&text).into_owned();
            (output.status, String::new(), text)
        }
    };
    if status.success() {
        return Ok(stdout);
    }
    Err(CommandError::Failed {
        line: line(command),
        status,
        output: tail(&text),
    })
}

/// Checks that programs are installed, before work starts that would need them late.
///
/// # Errors
/// Names the first that is missing.
pub fn require(tools: &[&str]) -> Result<(), CommandError> {
    let folders: Vec<PathBuf> = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default();
    for tool in tools {
        if !folders.iter().any(|folder| folder.join(tool).is_file()) {
            return Err(CommandError::MissingTool {
                tool: (*tool).to_owned(),
                package: package(tool),
            });
        }
    }
    Ok(())
}

/// The first line of a tool's `--version`: output can differ between versions, so it is an input.
///
/// # Errors
/// See [`CommandError`].
pub fn version(tool: &str) -> Result<String, CommandError> {
    let text = run(Command::new(tool).arg("--version"), None)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn package(tool: &str) -> &'static str {
    PACKAGES
        .iter()
        .find(|(name, _)| *name == tool)
        .map_or("the package that contains it", |(_, package)| package)
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let _ = write!(line, " {}", argument.to_string_lossy());
    }
    line
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .fold(String::new(), |all, line| all + "\n  " + line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let error = require(&["sh", "cocoon-no-such-tool"]).unwrap_err();
        assert!(
            error.to_string().contains("`cocoon-no-such-tool` is missing"),
            "{error}"
        );
        let error = run(&mut Command::new("cocoon-no-such-tool"), None).unwrap_err();
        assert!(matches!(error, CommandError::MissingTool { .. }));
        assert_eq!(package("xz"), "xz-utils");
    }

    #[test]
    fn a_failure_repeats_the_end_of_the_output_and_the_log_keeps_all() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "for i in $(seq 100); do echo line $i; done; exit 3";
        for log in [None, Some(log.as_path())] {
            let error = run(Command::new("sh").args(["-c", script]), log).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("line 100") && text.contains("line 81\n") && !text.contains("line 80\n"));
        }
        assert_eq!(std::fs::read_to_string(log).unwrap().lines().count(), 100);
    }
}
