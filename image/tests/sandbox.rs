//! What a build in the builder root can and cannot reach. The root here is a small one: this machine's bash.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cocoon_image::{
    library::closure,
    recipe::LibraryFolder,
    sandbox::{BUILD, Bind, MOUNT_POINTS, Sandbox},
};
use tempfile::TempDir;

const PROGRAMS: [&str; 4] = ["/usr/bin/bash", "/usr/bin/env", "/usr/bin/cat", "/usr/bin/touch"];

/// A root with a shell, and a folder bound to [`BUILD`].
struct House {
    folder: TempDir,
}

impl House {
    fn new() -> Self {
        let house = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let root = house.root();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        for point in MOUNT_POINTS {
            fs::create_dir_all(root.join(&point[1..])).unwrap();
        }
        let programs = PROGRAMS.map(PathBuf::from);
        let folders = ["/lib/x86_64-linux-gnu", "/lib64"].map(|folder| LibraryFolder {
            name: "host".into(),
            folder: folder.into(),
            strip: false,
        });
        for library in closure(&programs, &[], &folders).unwrap().values() {
            copy(&library.path, &root.join(&library.install[1..]));
        }
        for program in &programs {
            copy(program, &root.join(program.strip_prefix("/").unwrap()));
        }
        fs::create_dir(house.build()).unwrap();
        house
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn build(&self) -> PathBuf {
        self.folder.path().join("build")
    }

    fn run(&self, script: &str) -> Output {
        let sandbox = Sandbox {
            root: self.root(),
            helper: PathBuf::from(env!("CARGO_BIN_EXE_cocoon-image")),
            binds: vec![Bind {
                from: self.build(),
                to: BUILD.into(),
                writable: true,
            }],
        };
        let mut bash = sandbox.command("/usr/bin/bash", &[("GIVEN", "yes")]);
        bash.args(["-c", script]).env("LEAKED", "yes").output().unwrap()
    }

    fn succeeds(&self, script: &str) -> String {
        let output = self.run(script);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{script}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
}

#[test]
fn a_build_has_no_network_not_even_this_machine() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    let outside = Command::new("bash").args(["-c", &connect]).status().unwrap();
    assert!(outside.success(), "the listener is there");
    let house = House::new();
    assert!(!house.run(&connect).status.success());
    let interfaces = house.succeeds("cat /proc/net/dev");
    let names = interfaces
        .lines()
        .skip(2)
        .filter_map(|line| line.split(':').next());
    assert_eq!(names.map(str::trim).collect::<Vec<_>>(), ["lo"]);
}

/// The first line alone fails only for users other than root: see `make_devices`.
#[test]
fn a_build_writes_to_devices_whoever_runs_it() {
    let house = House::new();
    house.succeeds("echo nothing >/dev/null");
    house.succeeds("[ ! -k /dev ]");
}

#[test]
fn a_build_cannot_change_the_root_it_runs_in() {
    let house = House::new();
    for path in ["/usr/bin/cc", "/new", "/vendor/crate"] {
        assert!(!house.run(&format!("touch {path}")).status.success(), "{path}");
    }
    house.succeeds("touch /build/made /tmp/temporary");
    assert!(house.build().join("made").is_file());
    assert!(!house.root().join("tmp/temporary").exists());
}

#[test]
fn a_build_sees_neither_this_machines_files_nor_its_variables_processes_or_name() {
    let house = House::new();
    assert!(!house.run("cat /etc/passwd").status.success());
    let outside = house.folder.path().display().to_string();
    assert!(!house.run(&format!("cat {outside}/secret")).status.success());
    let variables = house.succeeds("env");
    assert!(
        variables.contains("GIVEN=yes") && !variables.contains("LEAKED"),
        "{variables}"
    );
    assert!(
        variables.contains("TZ=UTC") && variables.contains("LC_ALL=C"),
        "{variables}"
    );
    assert_eq!(house.succeeds("cd /proc && echo [0-9]*").trim(), "1 2");
    assert_eq!(house.succeeds("cat /proc/sys/kernel/hostname").trim(), "builder");
}

#[test]
fn how_a_program_ends_is_passed_on() {
    let house = House::new();
    assert_eq!(house.run("exit 7").status.code(), Some(7));
    assert_eq!(house.run("kill -9 $$").status.code(), Some(128 + 9));
    let missing = Sandbox {
        root: house.root(),
        helper: PathBuf::from(env!("CARGO_BIN_EXE_cocoon-image")),
        binds: vec![],
    };
    assert!(!missing.command("/usr/bin/none", &[]).status().unwrap().success());
}
