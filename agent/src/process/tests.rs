//! What a child cannot do, tried by Python in the engine's place.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncReadExt as _;

use super::*;

const MEMORY_BYTES_MAX: u64 = 512 << 20;
/// Nobody's on Debian (systemd's "Users, Groups, UIDs and GIDs"): what else runs on this machine does not count as the
/// child's threads.
const CHILD_USER: u32 = 61_000;

/// What Python needs to start.
fn python(script: &str, readable: &[&str]) -> EngineCommand {
    let user = nix::unistd::getuid().as_raw();
    let needed = ["/usr/lib", "/lib", "/etc/ld.so.cache"];
    EngineCommand {
        program: "/usr/bin/python3".into(),
        arguments: ["-I", "-S", "-c", script].map(Into::into).into(),
        user: if user == 0 { CHILD_USER } else { user },
        threads: 2,
        console: true,
        readable: needed.iter().chain(readable).map(PathBuf::from).collect(),
        linkers: vec!["/lib64/ld-linux-x86-64.so.2".into()],
        memory_bytes_max: MEMORY_BYTES_MAX,
        children: Children::default(),
    }
}

async fn output_of(script: &str, readable: &[&str]) -> String {
    let mut process = python(script, readable).spawn().unwrap();
    let mut text = String::new();
    process.socket.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn the_child_has_no_privileges_and_inherits_one_descriptor() {
    let leak = std::fs::File::open("/dev/null").unwrap();
    let inherited = nix::unistd::dup(&leak).unwrap();
    let script = "import os\n\
                      fds = ' '.join(sorted(os.listdir('/proc/self/fd')))\n\
                      status = open('/proc/self/status').read()\n\
                      os.write(3, f'{status}fds:\\t{fds}\\nenv:\\t{dict(os.environ)}\\n'.encode())\n";
    let status = output_of(script, &["/proc"]).await;
    drop(inherited);
    let value = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_once('\t').unwrap().1.to_owned()
    };
    assert_eq!(value("NoNewPrivs:"), "1");
    assert_eq!(value("Seccomp:"), "2");
    assert_eq!(value("CapEff:"), "0000000000000000");
    assert_ne!(value("Uid:").split('\t').next(), Some("0"));
    // 4 is the listing itself.
    assert_eq!(value("fds:"), "0 1 2 3 4");
    assert!(value("env:").contains("'OMP_NUM_THREADS': '2'"));
    assert!(!value("env:").contains("CARGO"));
}

/// Each attempt answers with the name of its error, or with `done`.
async fn attempts(attempts: &[&str], readable: &[&str]) -> Vec<String> {
    let mut script = "import os, ctypes, threading\n\
                          libc = ctypes.CDLL(None, use_errno=True)\n\
                          libc.syscall.restype = ctypes.c_long\n\
                          def call(number, *arguments):\n\
                          \x20   if libc.syscall(number, *arguments) < 0: raise OSError(ctypes.get_errno(), '')\n\
                          def attempt(what):\n\
                          \x20   try: what(); said = 'done'\n\
                          \x20   except Exception as error: said = type(error).__name__\n\
                          \x20   os.write(3, (said + '\\n').encode())\n"
            .to_owned();
    for attempt in attempts {
        script += &format!("attempt(lambda: {attempt})\n");
    }
    let heard = output_of(&script, readable).await;
    heard.lines().map(str::to_owned).collect()
}

async fn all_answer(expected: &str, tried: &[&str], readable: &[&str]) {
    let answers = attempts(tried, readable).await;
    assert_eq!(answers.len(), tried.len(), "{answers:?}");
    for (attempt, answer) in tried.iter().zip(answers) {
        assert_eq!(answer, expected, "{attempt}");
    }
}

#[tokio::test]
async fn the_child_starts_threads_and_reads_what_it_was_granted() {
    let tried = [
        "[thread := threading.Thread(target=print), thread.start(), thread.join()]",
        "open('/etc/hostname').read()",
    ];
    all_answer("done", &tried, &["/etc/hostname"]).await;
}

#[tokio::test]
async fn the_child_reaches_no_socket_process_or_other_system_call() {
    // socket (vsock, Unix, netlink), socketpair, fork, vfork, kill, ptrace, process_vm_readv, ioctl, mount,
    // unshare, memfd_create, io_uring_setup, bpf, perf_event_open, keyctl, userfaultfd, pidfd_getfd; and x32.
    let tried = [
        "call(41, 40, 1, 0)",
        "call(41, 1, 1, 0)",
        "call(41, 16, 3, 0)",
        "call(53, 1, 1, 0, 0)",
        "call(57)",
        "call(58)",
        "call(62, os.getppid(), 0)",
        "call(101, 0, 0, 0, 0)",
        "call(310, os.getppid(), 0, 0, 0, 0, 0)",
        "call(16, 3, 0x5401, 0)",
        "call(165, 0, 0, 0, 0, 0)",
        "call(272, 0x10000000)",
        "call(319, b'x', 0)",
        "call(425, 1, 0)",
        "call(321, 0, 0, 0)",
        "call(298, 0, 0, -1, -1, 0)",
        "call(250, 0, 0, 0, 0, 0)",
        "call(323, 0)",
        "call(438, 0, 0, 0)",
        "call(0x40000000 + 39)",
        "os.fork()",
    ];
    all_answer("PermissionError", &tried, &[]).await;
}

#[tokio::test]
async fn the_child_opens_and_executes_nothing_that_it_was_not_granted() {
    let tried = [
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "os.listdir('/')",
        "os.listdir('/dev')",
        "open('/dev/null', 'w')",
        "open('/tmp/cocoon-engine-was-here', 'w')",
        "open('/etc/hostname', 'r+')",
        "os.execv('/bin/true', ['true'])",
        "os.unlink('/etc/hostname')",
    ];
    all_answer("PermissionError", &tried, &["/etc/hostname"]).await;
}

#[tokio::test]
async fn a_child_that_takes_more_memory_than_it_may_fails_alone() {
    let tried = [format!("bytearray({})", MEMORY_BYTES_MAX)];
    all_answer("MemoryError", &tried.each_ref().map(String::as_str), &[]).await;
    let tried = [format!("bytearray({})", MEMORY_BYTES_MAX / 4)];
    all_answer("done", &tried.each_ref().map(String::as_str), &[]).await;
}

#[tokio::test]
async fn a_child_gets_no_memory_that_its_limits_do_not_count() {
    // mmap, readable and writable: private without a file, as a heap is.
    all_answer("done", &["call(9, 0, 4096, 3, 0x22, -1, 0)"], &[]).await;
    // Shared without a file, with either flag for sharing; growing like a stack; mremap, which makes such out of a piece
    // of the stack; prlimit64 for the stack itself.
    let tried = [
        "call(9, 0, 4096, 3, 0x21, -1, 0)",
        "call(9, 0, 4096, 3, 0x23, -1, 0)",
        "call(9, 0, 4096, 3, 0x122, -1, 0)",
        "call(25, 0, 0, 0, 0, 0)",
        "call(302, 0, 3, (ctypes.c_ulong * 2)(1 << 40, 1 << 40), None)",
    ];
    all_answer("PermissionError", &tried, &[]).await;
}

/// Process ids are the whole guest's: the agent ends when it cannot start a thread.
#[tokio::test]
async fn a_child_that_starts_threads_without_end_leaves_process_ids_to_others() {
    const BOUND: u64 = 2 * THREADS_FOR_EACH_MAX + OTHER_THREADS_MAX;
    if !nix::unistd::getuid().is_root() {
        eprintln!("SKIP: only root can give the child a user of its own, whose threads are bounded");
        return;
    }
    let script = "import os, threading\n\
                  threading.stack_size(1 << 16)\n\
                  never, started = threading.Event(), 1\n\
                  try:\n\
                  \x20   while started < 4096:\n\
                  \x20       threading.Thread(target=never.wait, daemon=True).start()\n\
                  \x20       started += 1\n\
                  except RuntimeError: pass\n\
                  os.write(3, str(started).encode())\n\
                  os._exit(0)\n";
    let mut command = python(script, &[]);
    // The other tests' children start threads at the same time.
    command.user = CHILD_USER + 1;
    let mut text = String::new();
    let mut process = command.spawn().unwrap();
    process.socket.read_to_string(&mut text).await.unwrap();
    let started: u64 = text.parse().unwrap();
    // Fewer where another run of this test is still ending.
    assert!((2..=BOUND).contains(&started), "{started}");
}

#[test]
fn a_child_of_the_same_user_is_not_charged_with_what_else_that_user_runs() {
    let mut command = python("", &[]);
    assert_eq!(command.threads, 2);
    command.user = nix::unistd::getuid().as_raw();
    assert_eq!(command.threads_max(), None);
    command.user += 1;
    assert_eq!(
        command.threads_max(),
        Some(2 * THREADS_FOR_EACH_MAX + OTHER_THREADS_MAX)
    );
}

/// Its memory holds prompts: no limit of this process, and nothing it does, lets a core of it be written.
#[tokio::test]
async fn the_child_leaves_no_core_dump() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    assert!(
        hard > 0,
        "this machine allows no dumps, so nothing is shown here: {soft} {hard}"
    );
    setrlimit(Resource::RLIMIT_CORE, hard, hard).unwrap();
    let script = "import os, resource as r\n\
                      said = [r.getrlimit(r.RLIMIT_CORE)]\n\
                      try: r.setrlimit(r.RLIMIT_CORE, (4096, 4096))\n\
                      except Exception as error: said.append(type(error).__name__)\n\
                      os.write(3, str(said).encode())\n";
    let modules = ["/usr/lib/python3", "/usr/lib/python3.11"];
    assert_eq!(output_of(script, &modules).await, "[(0, 0), 'ValueError']");
}

#[tokio::test]
async fn dropping_the_guard_kills_the_child() {
    let EngineProcess { mut socket, guard } = python("import time; time.sleep(600)", &[]).spawn().unwrap();
    drop(guard);
    assert_eq!(socket.read(&mut [0; 1]).await.unwrap(), 0);
}
