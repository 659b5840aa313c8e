//! The agent in a process of its own: how it is started and looked at, and what it serves there.

mod played;
mod talker;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use cocoon_agent::{
    boot::{self, Parts},
    engine::Engine,
    guest,
    host::HostClient,
    serve::Deadlines,
};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike as _},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines, stdin},
    net::UnixListener,
    process::{ChildStdin, ChildStdout, Command},
    time::{sleep, timeout},
};

pub(crate) use self::{
    played::{CREDIT_NANO, MODEL, launch_document},
    talker::{CLOCK, INPUT_TOKENS, PIECE_PAUSE, Prompt},
};
use self::{
    played::{Disk, Host, NoControl, NoGpus, Platform, Sockets},
    talker::Talker,
};

/// From its start to its socket, and to each of its answers.
const DEADLINE: Duration = Duration::from_secs(120);

/// What the agent says of itself, and the kernel of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Look {
    /// Tasks that have not ended.
    pub(crate) tasks: usize,
    /// Usage records that the host was given, in order and without gaps.
    pub(crate) records: u64,
    /// Open descriptors.
    pub(crate) files: usize,
    /// Memory in use.
    pub(crate) resident_kib: u64,
    /// Processor time that it took so far.
    pub(crate) processor_us: u64,
}

/// The agent's process; ends when dropped.
pub(crate) struct Child {
    socket: PathBuf,
    folder: PathBuf,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _process: tokio::process::Child,
}

impl Child {
    /// Starts this program as the agent.
    pub(crate) fn start(streams: usize) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("cocoon-soak-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("making the folder {}", folder.display()))?;
        let socket = folder.join("agent");
        let mut process = Command::new(std::env::current_exe().context("finding this program")?)
            .arg("--agent")
            .arg(&socket)
            .args(["--streams", &streams.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting the agent")?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (questions, answers) = pipes.context("the agent has no pipes")?;
        Ok(Self {
            socket,
            folder,
            questions,
            answers: BufReader::new(answers).lines(),
            _process: process,
        })
    }

    /// Where it listens, once it has been looked at.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks the agent how it is.
    pub(crate) async fn look(&mut self) -> Result<Look> {
        self.questions
            .write_all(b"\n")
            .await
            .context("asking the agent")?;
        let answer = timeout(DEADLINE, self.answers.next_line()).await;
        let line = answer.context("the agent does not answer")??;
        let line = line.context("the agent ended")?;
        serde_json::from_str(&line).context("reading the agent's answer")
    }

    /// Waits until nothing starts or ends any more.
    pub(crate) async fn look_when_quiet(&mut self) -> Result<Look> {
        let mut look = self.look().await?;
        loop {
            sleep(Duration::from_secs(1)).await;
            let next = self.look().await?;
            if (next.tasks, next.files) == (look.tasks, look.files) {
                return Ok(next);
            }
            look = next;
        }
    }

    /// Waits until nothing more is open than before, and says how it is then, or after a time how it stayed.
    pub(crate) async fn look_until_as(&mut self, before: &Look) -> Result<Look> {
        let mut look = self.look().await?;
        for _ in 0..DEADLINE.as_secs() {
            if look.tasks <= before.tasks && look.files <= before.files {
                break;
            }
            sleep(Duration::from_secs(1)).await;
            look = self.look().await?;
        }
        Ok(look)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Is the agent, until standard input ends.
pub(crate) async fn serve(socket: &Path, streams: usize) -> Result<()> {
    let listener =
        UnixListener::bind(socket).with_context(|| format!("listening on {}", socket.display()))?;
    let host = Arc::new(Host::new(streams)?);
    let parts = Parts {
        host: Arc::new(HostClient::new(host.dial())),
        platform: Arc::new(Platform),
        volumes: Arc::new(Disk),
        gpus: Arc::new(NoGpus),
        engine: Engine::start(Arc::new(Talker)),
    };
    let booted = boot::boot(parts).await.context("booting the agent")?;
    let (https, dial, mut control) = (Box::new(Sockets(listener)), host.dial(), NoControl);
    let running = guest::run(booted, dial, https, &mut control, Deadlines::default());
    tokio::select! {
        ended = running => bail!("the agent ended: {ended:?}"),
        asked = answer_looks(&host) => asked,
    }
}

async fn answer_looks(host: &Host) -> Result<()> {
    let mut questions = BufReader::new(stdin()).lines();
    while questions.next_line().await?.is_some() {
        let records = host.records.load(Ordering::SeqCst);
        ensure!(
            !host.out_of_order.load(Ordering::SeqCst),
            "usage records came out of order"
        );
        let look = Look {
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            records,
            files: fs::read_dir("/proc/self/fd")
                .context("counting descriptors")?
                .count(),
            resident_kib: resident_kib()?,
            processor_us: processor_us()?,
        };
        println!("{}", serde_json::to_string(&look)?);
    }
    Ok(())
}

fn processor_us() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("asking for the processor time taken")?;
    let times = [usage.user_time(), usage.system_time()];
    let taken_us: i64 = times.iter().map(TimeVal::num_microseconds).sum();
    taken_us.try_into().context("a negative processor time")
}

fn resident_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("reading the memory in use")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.context("the kernel does not say the memory in use")?
        .parse()
        .context("reading the memory in use")
}
