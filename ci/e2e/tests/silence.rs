//! What a host learns by watching a guest at work, or crash: from its disks nothing, and from all that it prints, logs
//! and stores no word of prompt or answer.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Child, Stdio},
};

use cocoon_e2e::{Image, Node, describe, eventually};
use cocoon_protocol::simulated::InjectFault;

const PROMPT: &str = "What is Cocoon? Canary-7f3a91 wants to know.";
const PROMPT_CANARY: &str = "7f3a91";

#[test]
fn a_serving_guest_reads_no_disk_and_writes_nothing_of_prompt_or_answer() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    let qemu = node.qemu_with_monitor();
    node.write_config(&image, &format!("[tools]\nqemu = \"{}\"", qemu.display()));
    node.up_and_serving();
    let before = node.disk_reads();
    assert!(
        before.len() >= 2 && before.iter().all(|reads| *reads > 0),
        "{before:?}"
    );

    let answer = node.chat(PROMPT);
    assert!(answer.status.success(), "{}", describe(&answer));
    let text = String::from_utf8(answer.stdout).expect("an answer is text");
    // The engine's libraries are linked and the model is loaded anew: out of memory, not from a disk.
    node.kill_engine();
    eventually("the engine is back", || node.chat(PROMPT).status.success());
    assert_eq!(node.disk_reads(), before, "the guest read a disk while it served");

    eventually("the records are stored", || node.records().len() == 2);
    assert!(node.down().status.success());
    let searched = search_for(&node, &text);
    for file in ["console.log", "journal"] {
        assert!(
            searched.iter().any(|name| name.contains(file)),
            "{file} was not searched: {searched:?}"
        );
    }
}

/// Both crash while they hold a conversation: neither leaves a dump, and what agent and kernel say of it holds no
/// content.
#[test]
fn a_crash_of_engine_and_agent_shows_the_host_no_word_of_prompt_or_answer() {
    let Some(image) = Image::from_env() else { return };
    let node = Node::configure(&image);
    node.up_and_serving();
    let answer = node.chat(PROMPT);
    assert!(answer.status.success(), "{}", describe(&answer));
    let text = String::from_utf8(answer.stdout).expect("an answer is text");

    let mut answering = begin_answer(&node);
    node.inject(InjectFault::CrashEngine);
    assert!(!answering.wait().expect("cocoon ends").success());
    eventually("the engine is back", || node.chat(PROMPT).status.success());

    let mut answering = begin_answer(&node);
    node.inject(InjectFault::CrashAgent);
    assert!(!answering.wait().expect("cocoon ends").success());
    let console = || fs::read_to_string(node.path("state/console.log")).expect("the console's log");
    eventually("the kernel has ended the guest", || {
        console().contains("Kernel panic")
    });
    let said = console();
    assert!(said.contains("the engine was ended by SIGABRT"), "{said}");
    let searched = search_for(&node, &text);
    for file in ["console.log", "journal"] {
        assert!(
            searched.iter().any(|name| name.contains(file)),
            "{file} was not searched: {searched:?}"
        );
    }
    assert!(
        !searched.iter().any(|name| name.contains("/core")),
        "{searched:?}"
    );
}

/// A client in the middle of an answer, which is hot enough not to end by itself before the guest is broken.
fn begin_answer(node: &Node) -> Child {
    let mut command = node.chat_command("policy.toml", PROMPT);
    command.args(["--temperature", "2", "--max-tokens", "96"]);
    let mut client = command.stdout(Stdio::piped()).spawn().expect("cocoon runs");
    let answer = client.stdout.as_mut().expect("a pipe");
    answer.read_exact(&mut [0; 1]).expect("the answer begins");
    client
}

/// Searches everything that the host has for the prompt's canary and the beginning of the answer; returns where.
fn search_for(node: &Node, answer: &str) -> Vec<String> {
    let canary = answer.trim().chars().take(24).collect::<String>();
    assert!(canary.len() > 10, "no canary: {answer:?}");
    for canary in [PROMPT_CANARY, &canary] {
        let found = files(&node.path(""), canary.as_bytes());
        assert!(found.is_empty(), "{canary:?} stands in {found:?}");
    }
    let printed = files(&node.path(""), b"the engine runs with");
    assert!(
        printed.iter().any(|name| name.contains("console.log")),
        "the search is blind"
    );
    files(&node.path(""), b"")
}

/// The files below that hold these bytes.
fn files(folder: &Path, wanted: &[u8]) -> Vec<String> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).expect("the node's folder").flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a kind of file");
        if kind.is_dir() {
            found.extend(files(&path, wanted));
        } else if kind.is_file() {
            let bytes = fs::read(&path).expect("the node's files can be read");
            if wanted.is_empty() || bytes.windows(wanted.len()).any(|window| window == wanted) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}
