//! Child processes that die with the launcher, even when it is killed with -9.
//!
//! `PR_SET_PDEATHSIG` fires when the *thread* that forked ends (prctl(2)), so all children are forked from one
//! thread that lives as long as the [`Spawner`].

use std::{io, process::ExitStatus, sync::mpsc, thread, time::Duration};

use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
};

struct Request {
    command: Command,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// Forks children from its own thread. Dropping the last clone ends the thread and with it the children.
#[derive(Debug, Clone)]
pub struct Spawner(mpsc::Sender<Request>);

impl Spawner {
    /// Starts the thread. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start() -> io::Result<Self> {
        let (sender, requests) = mpsc::channel::<Request>();
        let runtime = Handle::current();
        thread::Builder::new().name("spawner".into()).spawn(move || {
            let _inside = runtime.enter();
            while let Ok(Request { mut command, reply }) = requests.recv() {
                let _ = reply.send(command.spawn());
            }
        })?;
        Ok(Self(sender))
    }

    /// Starts a program in a process group of its own, so that a Ctrl-C in the terminal reaches the launcher
    /// alone, which then stops its children in order.
    ///
    /// # Errors
    /// Those of fork and exec; `NotFound` if there is no such program.
    pub async fn spawn(&self, mut command: Command) -> io::Result<Child> {
        command.process_group(0).kill_on_drop(true);
        death_signal::kill_with_parent(&mut command);
        let (reply, answer) = oneshot::channel();
        let gone = |_| io::Error::other("the thread that starts programs is gone");
        self.0
            .send(Request { command, reply })
            .map_err(|_| io::Error::other("the thread that starts programs is gone"))?;
        answer.await.map_err(gone)?
    }
}

/// Waits for a child's own end, and kills it when it takes too long.
///
/// # Errors
/// Those of waiting for a process.
pub async fn wait_or_kill(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            child.start_kill()?;
            child.wait().await
        }
    }
}

#[allow(unsafe_code, reason = "work between fork and exec")]
mod death_signal {
    use std::io;

    use nix::{
        sys::{prctl, signal::Signal},
        unistd::{Pid, getpid, getppid},
    };
    use tokio::process::Command;

    pub(super) fn kill_with_parent(command: &mut Command) {
        let launcher: Pid = getpid();
        let prepare = move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The launcher may have died before the line above: then nobody would send the signal.
            if getppid() == launcher {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed (signal-safety(7)). The closure
        // makes two system calls, prctl and getppid, and neither allocates nor locks.
        unsafe { command.pre_exec(prepare) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    }

    #[tokio::test]
    async fn children_outlive_the_task_that_asked_for_them() {
        let spawner = Spawner::start().unwrap();
        let asking = spawner.clone();
        let mut child = tokio::spawn(async move { asking.spawn(sleeper()).await })
            .await
            .unwrap()
            .unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().await.unwrap();
    }

    #[tokio::test]
    async fn children_die_with_the_spawner() {
        use std::os::unix::process::ExitStatusExt as _;
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(sleeper()).await.unwrap();
        drop(spawner);
        let status = child.wait().await.unwrap();
        assert_eq!(status.signal(), Some(9));
    }

    #[tokio::test]
    async fn a_missing_program_is_not_found() {
        let spawner = Spawner::start().unwrap();
        let error = spawner.spawn(Command::new("/no/such/program")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_child_that_does_not_end_is_killed() {
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(sleeper()).await.unwrap();
        let status = wait_or_kill(&mut child, Duration::from_millis(10)).await.unwrap();
        assert!(!status.success());
    }
}
