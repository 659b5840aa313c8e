//! A host that drops, delays, duplicates, reorders and corrupts bytes, lies about the length of records, leaves
//! connections half open or ends them: every record from the handshake to the end of the answer, at its boundary and
//! inside. Whatever it does, the client ends with an error that has an exit code, within its deadlines, or with the
//! whole answer and a true receipt; and nothing of prompt or answer goes by in clear.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod hostile_host;
mod node;

use std::{sync::Arc, time::Duration};

use cocoon::{ChatError, ConnectError, Deadlines, ExchangeError, Exit, connect};
use cocoon_simulator::SimulatedPlatform;
use cocoon_verify::Floors;
use hostile_host::{Fault, HostileHost, PLACES, Place, Plan, WAYS, Way};
use node::{ANSWER, Guest, Node, OPTIONS, PROMPT, now_s, owner, platform, prompt};
use tokio::{io::AsyncWriteExt as _, sync::Semaphore, task::JoinSet};

/// Runs at once: most of them wait for a deadline.
const RUNS_AT_ONCE: usize = 16;

/// A run that takes longer does not end at all: all its deadlines together are less.
const RUN_ENDS_WITHIN: Duration = Duration::from_secs(120);

/// For bytes that may never come. Whatever else is late on a busy machine ends with the same error.
fn short() -> Deadlines {
    let limit = Duration::from_secs(2);
    Deadlines {
        handshake: limit,
        exchange: limit,
        first_text: limit,
        next_text: limit,
        ..Deadlines::default()
    }
}

/// What became of one conversation.
struct Outcome {
    ended: Result<String, Failure>,
    node: Node,
    host: HostileHost,
}

enum Failure {
    Connect(ConnectError),
    Offer(ExchangeError),
    Chat(ChatError),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Self::Connect(error) => Exit::from(error),
            Self::Chat(error) => Exit::from(error),
            Self::Offer(error) => match error {
                ExchangeError::Status { .. } => panic!("the node refused the grant: {error}"),
                _ => Exit::Request,
            },
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Connect(error) => error.to_string(),
            Self::Offer(error) => error.to_string(),
            Self::Chat(error) => error.to_string(),
        }
    }
}

/// Verifies, pays and asks, through the host.
async fn converse(platform: &SimulatedPlatform, plan: Option<Plan>, deadlines: Deadlines) -> Outcome {
    let guest = Guest::boot(platform, 1);
    let policy = guest.policy();
    let node = Node::honest(guest).await;
    let host = HostileHost::before(node.endpoint.port(), plan).await;
    let endpoint = format!("https://{}", host.address).parse().unwrap();
    let owner = owner();
    let whole_way = async {
        let mut session = connect(&endpoint, &policy, Floors::default(), now_s(), &deadlines)
            .await
            .map_err(Failure::Connect)?;
        let grant = session.offer(&node.grant(&owner), &owner).await;
        let mut paid = session.open(grant.map_err(Failure::Offer)?);
        let answer = paid.chat(&prompt(), OPTIONS, |_| ()).await;
        Ok(answer.map_err(Failure::Chat)?.text)
    };
    let ended = tokio::time::timeout(RUN_ENDS_WITHIN, whole_way)
        .await
        .unwrap_or_else(|_| panic!("{plan:?}: the client waits for ever"));
    Outcome { ended, node, host }
}

/// What has to hold however a conversation ends.
fn check(plan: Option<Plan>, outcome: &Outcome) {
    let Outcome { ended, node, host } = outcome;
    host.assert_saw_nothing_of(PROMPT);
    host.assert_saw_nothing_of(&ANSWER.concat());
    let received = String::from_utf8_lossy(&node.received()).into_owned();
    let asked = node
        .requests()
        .iter()
        .filter(|line| line.contains("/v1/chat"))
        .count();
    assert!(asked <= 1, "{plan:?}: asked {asked} times");
    match ended {
        Ok(answer) => assert_eq!(*answer, ANSWER.concat(), "{plan:?}"),
        Err(failure) => {
            let (exit, text) = (failure.exit(), failure.text());
            let expected: &[Exit] = match failure {
                Failure::Connect(_) => &[Exit::Unreachable, Exit::Channel],
                Failure::Offer(_) | Failure::Chat(_) => &[Exit::Request],
            };
            assert!(expected.contains(&exit), "{plan:?}: {exit:?}: {text}");
            assert!(!text.is_empty() && !text.contains(PROMPT), "{plan:?}: {text}");
            if matches!(failure, Failure::Connect(_)) {
                assert!(!received.contains("/v1/"), "{plan:?}: {received}");
            }
        }
    }
}

/// One conversation for each record, direction and place. With `harmless` each has to be answered, otherwise none
/// whose record carried something.
async fn check_every_record(fault: Fault, harmless: bool) {
    let platform = platform();
    let clean = converse(&platform, None, Deadlines::default()).await;
    check(None, &clean);
    assert!(clean.ended.is_ok(), "nobody can talk through an honest relay");
    let records = clean.host.records();

    let (mut runs, places) = (JoinSet::new(), Arc::new(Semaphore::new(RUNS_AT_ONCE)));
    for plan in plans(fault, records) {
        let (platform, places) = (platform.clone(), places.clone());
        let deadlines = if harmless { Deadlines::default() } else { short() };
        runs.spawn(async move {
            let _place = places.acquire_owned().await.unwrap();
            let outcome = converse(&platform, Some(plan), deadlines).await;
            check(Some(plan), &outcome);
            (plan, outcome)
        });
    }
    let mut refused_ways = vec![];
    while let Some(run) = runs.join_next().await {
        let (plan, outcome) = run.unwrap();
        let after_all = is_after_all(plan, outcome.host.records());
        match outcome.ended {
            Err(failure) if harmless => panic!("{plan:?}: {}", failure.text()),
            Ok(_) => assert!(
                harmless || after_all || !outcome.host.did_harm(),
                "{plan:?}: not noticed"
            ),
            Err(Failure::Connect(_)) => refused_ways.push((plan.way, "before")),
            Err(_) => refused_ways.push((plan.way, "after")),
        }
    }
    for way in WAYS {
        for phase in ["before", "after"] {
            let met = refused_ways.contains(&(way, phase));
            assert!(
                met != harmless,
                "{way:?}: no record {phase} the verification was hit"
            );
        }
    }
}

/// Whether it may come too late to matter: HTTP's last chunk can come on its own, after the receipt that ends the
/// answer; and what the node refuses after the request need not be noticed before it is answered.
fn is_after_all(plan: Plan, (to_node, to_client): (usize, usize)) -> bool {
    match plan.way {
        Way::ToClient => plan.record + 1 >= to_client,
        Way::ToNode => {
            let repeats = plan.fault == Fault::Duplicate && plan.place == Place::Boundary;
            repeats && plan.record + 1 >= to_node
        }
    }
}

fn plans(fault: Fault, (to_node, to_client): (usize, usize)) -> Vec<Plan> {
    let mut plans = vec![];
    for way in WAYS {
        let records = match way {
            Way::ToNode => to_node,
            Way::ToClient => to_client,
        };
        for place in PLACES {
            plans.extend((0..records).map(|record| Plan {
                way,
                record,
                fault,
                place,
                seed: record as u64,
            }));
        }
    }
    plans
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_the_host_drops_are_missed() {
    check_every_record(Fault::Drop, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_the_host_delays_are_waited_for() {
    check_every_record(Fault::Delay, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_the_host_sends_twice_are_noticed() {
    check_every_record(Fault::Duplicate, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_the_host_reorders_are_noticed() {
    check_every_record(Fault::Reorder, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_the_host_corrupts_are_noticed() {
    check_every_record(Fault::Corrupt, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn record_lengths_that_the_host_invents_are_noticed() {
    check_every_record(Fault::LieAboutLength, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_host_leaves_half_open_is_given_up() {
    check_every_record(Fault::HalfOpen, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_host_ends_is_no_end_of_an_answer() {
    check_every_record(Fault::End, false).await;
}

/// The search itself: without it all tests above would pass for a client that sends everything in clear.
#[tokio::test]
#[should_panic(expected = "went by in clear")]
async fn a_prompt_in_clear_is_found() {
    let node = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let host = HostileHost::before(node.local_addr().unwrap().port(), None).await;
    let mut client = tokio::net::TcpStream::connect(host.address).await.unwrap();
    let length = u16::try_from(PROMPT.len()).unwrap().to_be_bytes();
    let record = [&[23, 3, 3], length.as_slice(), PROMPT.as_bytes()].concat();
    client.write_all(&record).await.unwrap();
    let (mut at_node, _) = node.accept().await.unwrap();
    let mut passed = vec![0; record.len()];
    tokio::io::AsyncReadExt::read_exact(&mut at_node, &mut passed)
        .await
        .unwrap();
    host.assert_saw_nothing_of(PROMPT);
}
