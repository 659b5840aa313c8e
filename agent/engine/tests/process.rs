//! The binary as the agent starts it: a socket at descriptor 3, frames, exit codes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod support;

use std::{
    collections::HashMap,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use cocoon_protocol::{
    NumericProfile,
    engine::{FinishReason, FromEngine, ToEngine},
    read_frame, write_frame,
};
use support::{Answer, ask, greedy, id_of};

/// Far more than anything here takes; a hanging engine fails the test instead of stopping it.
const DEADLINE: Duration = Duration::from_secs(120);

struct Running {
    child: Child,
    socket: UnixStream,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if the engine has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shell moves the socket from standard input to descriptor 3.
fn start() -> Running {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    let child = Command::new("sh")
        .args([
            "-c",
            r#"exec "$0" 3<&0 0</dev/null"#,
            env!("CARGO_BIN_EXE_cocoon-engine"),
        ])
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Running { child, socket: ours }
}

impl Running {
    fn send(&mut self, message: &ToEngine) {
        write_frame(&mut self.socket, message).unwrap();
    }

    fn receive(&mut self) -> FromEngine {
        read_frame(&mut self.socket).unwrap()
    }

    fn load(&mut self, folder: &std::path::Path) -> FromEngine {
        self.send(&ToEngine::Load {
            model_dir: folder.to_str().unwrap().into(),
            numeric_profile: NumericProfile::F32,
            context_tokens_max: 512,
            requests_max: 4,
        });
        self.receive()
    }

    fn generate(&mut self, id: u64, question: &str, tokens: u32) {
        self.send(&ToEngine::Generate {
            id,
            messages: ask(question),
            sampling: greedy(tokens),
        });
    }

    /// Closes our end; exit code, standard output and standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        let code = self.child.wait().unwrap().code();
        let text = |stream: &mut dyn std::io::Read| {
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        let output = text(&mut self.child.stdout.take().unwrap());
        let errors = text(&mut self.child.stderr.take().unwrap());
        (code, output, errors)
    }
}

#[test]
fn loads_answers_two_at_once_cancels_and_ends_silently() {
    let mut engine = start();
    assert!(matches!(
        engine.load(&support::demo_model()),
        FromEngine::Loaded { .. }
    ));
    engine.generate(1, "What is Cocoon?", 100);
    engine.generate(2, "Who can read my prompts?", 100);
    engine.generate(3, "What is a voucher?", 100);
    engine.send(&ToEngine::Cancel { id: 3 });
    let mut answers: HashMap<u64, Answer> = HashMap::new();
    while answers.values().filter(|answer| answer.end.is_some()).count() < 3 {
        let event = engine.receive();
        answers.entry(id_of(&event)).or_default().add(event);
    }
    assert!(answers[&1].text.contains("AI models"), "{answers:?}");
    assert!(answers[&2].text.contains("measured code"), "{answers:?}");
    assert_eq!(answers[&1].finished().0, FinishReason::Stop);
    assert_eq!(answers[&3].finished().0, FinishReason::Cancelled);
    assert_eq!(engine.end(), (Some(0), String::new(), String::new()));
}

#[test]
fn ends_in_the_middle_of_an_answer_when_the_agent_goes() {
    let mut engine = start();
    engine.load(&support::demo_model());
    engine.generate(1, "What is Cocoon?", 400);
    assert!(matches!(engine.receive(), FromEngine::Started { .. }));
    let (code, _, errors) = engine.end();
    // It ends by what it noticed first: nobody to read from, or nobody to write to.
    assert!(matches!(code, Some(0 | 1)), "{code:?} {errors}");
    assert!(!errors.contains("Cocoon?"));
}

#[test]
fn an_unreadable_model_is_told_and_ends_with_3() {
    let mut engine = start();
    match engine.load("/nonexistent".as_ref()) {
        FromEngine::LoadFailed { reason } => assert!(reason.contains("/nonexistent/config.json"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let (code, _, errors) = engine.end();
    assert_eq!(code, Some(3));
    assert!(errors.contains("cannot load the model"), "{errors}");
}

#[test]
fn a_request_before_the_model_and_a_used_id_end_with_4() {
    let mut engine = start();
    engine.generate(1, "secret", 1);
    assert!(read_frame::<FromEngine>(&mut engine.socket).is_err());
    let (code, _, errors) = engine.end();
    assert_eq!(code, Some(4));
    assert!(!errors.contains("secret"));

    let mut engine = start();
    engine.load(&support::demo_model());
    engine.generate(1, "What is Cocoon?", 400);
    engine.generate(1, "What is Cocoon?", 400);
    while read_frame::<FromEngine>(&mut engine.socket).is_ok() {}
    assert_eq!(engine.end().0, Some(4));
}

#[test]
fn a_frame_that_is_no_message_ends_with_1() {
    let mut engine = start();
    write_frame(&mut engine.socket, &"not a message, but secret").unwrap();
    assert!(read_frame::<FromEngine>(&mut engine.socket).is_err());
    let (code, _, errors) = engine.end();
    assert_eq!(code, Some(1));
    assert!(!errors.contains("secret"), "{errors}");
}

#[test]
fn started_by_hand_it_explains_itself() {
    let by_hand = |shell: &str| {
        let output = Command::new("sh")
            .args(["-c", shell, env!("CARGO_BIN_EXE_cocoon-engine")])
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for shell in [r#"exec "$0" 3<&-"#, r#"exec "$0" 3</dev/null"#] {
        let (code, errors) = by_hand(shell);
        assert_eq!(code, Some(2));
        assert!(errors.contains("Cocoon's agent starts it"), "{errors}");
    }
    assert_eq!(by_hand(r#"exec "$0" --help"#).0, Some(0));
    assert_eq!(by_hand(r#"exec "$0" --nonsense"#).0, Some(2));
}
