//! Requests on a loaded engine: alone and together, cancelled, stopped, refused.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod support;

use std::collections::HashMap;

use cocoon_protocol::{
    TokenCounts,
    engine::{Fault, FinishReason, FromEngine, Message, Sampling},
};
use support::{Answer, End, answer, ask, engine, greedy, id_of, run};

const QUESTIONS: [&str; 4] = [
    "What is Cocoon?",
    "Who can read my prompts?",
    "How is the provider paid?",
    "What is the capital of Peru?",
];

#[test]
fn together_they_get_the_answers_that_they_get_alone() {
    let mut engine = engine(512);
    let alone: Vec<Answer> = QUESTIONS
        .iter()
        .map(|question| answer(&mut engine, &ask(question), greedy(64)))
        .collect();
    assert!(
        alone
            .iter()
            .all(|answer| answer.pieces > 5 && answer.finished().0 == FinishReason::Stop)
    );

    let mut answers = HashMap::new();
    for (id, question) in QUESTIONS.iter().enumerate() {
        assert_eq!(engine.start(id as u64, &ask(question), greedy(64)), None);
        // The later ones join while the earlier ones are being answered.
        for event in (0..=id * 3).flat_map(|_| engine.step()).collect::<Vec<_>>() {
            answers
                .entry(id_of(&event))
                .or_insert_with(Answer::default)
                .add(event);
        }
    }
    run(&mut engine, &mut answers);
    for (id, alone) in alone.iter().enumerate() {
        assert_eq!(&answers[&(id as u64)], alone);
    }
}

#[test]
fn turns_are_taken() {
    let mut engine = engine(512);
    for id in 0..3 {
        engine.start(id, &ask("What is a voucher?"), greedy(16));
    }
    let order: Vec<u64> = (0..9).map(|_| id_of(&engine.step()[0])).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_prompt_of_several_chunks_does_not_hold_up_the_others_and_reads_the_same() {
    let long: Vec<Message> = (0..40)
        .flat_map(|_| {
            [
                ask("What is TDX?")[0].clone(),
                Message {
                    role: "assistant".into(),
                    content: "I cannot say.".into(),
                },
            ]
        })
        .chain(ask("What is a grant?"))
        .collect();
    let mut engine = engine(2048);
    let alone = answer(&mut engine, &long, greedy(24));
    assert!(alone.finished().1.input > 512, "{alone:?}");
    engine.start(1, &long, greedy(24));
    engine.start(2, &ask("What is a grant?"), greedy(8));
    let mut answers: HashMap<u64, Answer> = HashMap::new();
    let mut order = vec![];
    while !engine.is_idle() {
        for event in engine.step() {
            order.push(id_of(&event));
            answers.entry(id_of(&event)).or_default().add(event);
        }
    }
    assert_eq!(
        order[0], 2,
        "the short one speaks while the long one is being read"
    );
    assert_eq!(answers[&1], alone);
}

#[test]
fn counts_are_of_the_tokens_computed() {
    let mut engine = engine(512);
    let whole = answer(&mut engine, &ask(QUESTIONS[0]), greedy(100));
    let (reason, tokens) = whole.finished();
    assert_eq!(reason, FinishReason::Stop);
    assert_eq!(whole.input_tokens, Some(tokens.input));
    let short = answer(&mut engine, &ask(QUESTIONS[0]), greedy(5));
    assert_eq!(
        short.finished(),
        (
            FinishReason::Length,
            TokenCounts {
                input: tokens.input,
                output: 5
            }
        )
    );
    assert!(whole.text.starts_with(&short.text));
    // The end-of-sequence token is one of them.
    let exact = answer(&mut engine, &ask(QUESTIONS[0]), greedy(tokens.output as u32));
    assert_eq!(exact, whole);
    let less = answer(&mut engine, &ask(QUESTIONS[0]), greedy(tokens.output as u32 - 1));
    assert_eq!(
        (less.finished().0, &less.text),
        (FinishReason::Length, &whole.text)
    );
}

#[test]
fn a_cancelled_request_ends_at_once_and_is_counted() {
    let mut engine = engine(512);
    engine.start(7, &ask(QUESTIONS[0]), greedy(64));
    engine.start(8, &ask(QUESTIONS[1]), greedy(64));
    let mut answers = HashMap::new();
    for event in (0..11).flat_map(|_| engine.step()).collect::<Vec<_>>() {
        answers
            .entry(id_of(&event))
            .or_insert_with(Answer::default)
            .add(event);
    }
    let cancelled = engine.cancel(7).unwrap();
    let input = answers[&7].input_tokens.unwrap();
    let tokens = TokenCounts { input, output: 6 };
    assert_eq!(
        cancelled,
        FromEngine::Finished {
            id: 7,
            reason: FinishReason::Cancelled,
            tokens
        }
    );
    assert_eq!(engine.cancel(7), None, "it is gone");
    assert!(!engine.is_running(7) && engine.is_running(8));
    run(&mut engine, &mut answers);
    assert_eq!(answers[&7].end, None, "nothing came after the cancellation");
    assert_eq!(answers[&8].finished().0, FinishReason::Stop);

    engine.start(9, &ask(QUESTIONS[0]), greedy(64));
    let nothing = TokenCounts::default();
    let expected = FromEngine::Finished {
        id: 9,
        reason: FinishReason::Cancelled,
        tokens: nothing,
    };
    assert_eq!(
        engine.cancel(9),
        Some(expected),
        "nothing was computed, nothing is counted"
    );
}

#[test]
fn a_stop_string_over_several_tokens_ends_the_answer_before_it() {
    let mut engine = engine(512);
    let whole = answer(&mut engine, &ask(QUESTIONS[0]), greedy(64));
    let (at, _) = whole.text.char_indices().nth(20).unwrap();
    // Twelve characters from the middle of a word: more than one token, and not at the edge of one.
    let stop: String = whole.text[at..].chars().take(12).collect();
    let sampling = Sampling {
        stop: vec!["never said".into(), stop],
        ..greedy(64)
    };
    let stopped = answer(&mut engine, &ask(QUESTIONS[0]), sampling);
    assert_eq!(stopped.text, whole.text[..at]);
    let (reason, tokens) = stopped.finished();
    assert_eq!(reason, FinishReason::Stop);
    assert!(tokens.output < whole.finished().1.output);
}

#[test]
fn a_stop_string_that_only_begins_is_shown_in_the_end() {
    let mut engine = engine(512);
    let whole = answer(&mut engine, &ask(QUESTIONS[0]), greedy(64));
    let last: String = whole.text.chars().skip(whole.text.chars().count() - 4).collect();
    let sampling = Sampling {
        stop: vec![last + "and more"],
        ..greedy(64)
    };
    assert_eq!(answer(&mut engine, &ask(QUESTIONS[0]), sampling).text, whole.text);
}

#[test]
fn a_seed_gives_the_same_answer_again_alone_or_not() {
    let mut engine = engine(512);
    let hot = |seed| Sampling {
        temperature: 3.0,
        top_p: 0.99,
        seed,
        ..greedy(24)
    };
    let first = answer(&mut engine, &ask(QUESTIONS[0]), hot(1));
    assert_ne!(answer(&mut engine, &ask(QUESTIONS[0]), hot(2)).text, first.text);
    engine.start(2, &ask(QUESTIONS[1]), hot(5));
    engine.start(3, &ask(QUESTIONS[0]), hot(1));
    let mut answers = HashMap::new();
    run(&mut engine, &mut answers);
    assert_eq!(answers[&3], first);
}

#[test]
fn text_of_random_tokens_has_no_broken_characters_inside() {
    let mut engine = engine(512);
    for seed in 0..4 {
        let sampling = Sampling {
            temperature: 50.0,
            seed,
            ..greedy(60)
        };
        engine.start(1, &ask("?"), sampling);
        let mut tokens = 0;
        while !engine.is_idle() {
            for event in engine.step() {
                if let FromEngine::Text {
                    text, output_tokens, ..
                } = event
                {
                    assert!(output_tokens > tokens && !text.is_empty());
                    tokens = output_tokens;
                }
            }
        }
        assert!(tokens > 0);
    }
}

#[test]
fn the_context_ends_an_answer_and_refuses_a_prompt() {
    let mut engine = engine(64);
    let full = answer(&mut engine, &ask(QUESTIONS[0]), greedy(1000));
    let (_, tokens) = full.finished();
    assert!(tokens.input + tokens.output <= 64);

    let hot = Sampling {
        temperature: 20.0,
        ..greedy(1000)
    };
    let rambling = answer(&mut engine, &ask(QUESTIONS[0]), hot);
    if let (FinishReason::Length, tokens) = rambling.finished() {
        assert_eq!(tokens.input + tokens.output, 64);
    }
    for text in ["secret ".repeat(64), "secret ".repeat(300_000)] {
        match answer(&mut engine, &ask(&text), greedy(1)).end {
            Some(End::Failed(Fault::Context, reason)) => {
                assert!(
                    reason.contains("context of 64") && !reason.contains("secret"),
                    "{reason}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn senseless_requests_are_the_clients_fault() {
    let mut engine = engine(512);
    let stop = |list: Vec<String>| Sampling {
        stop: list,
        ..greedy(8)
    };
    let cases = [
        greedy(0),
        Sampling {
            temperature: -1.0,
            ..greedy(8)
        },
        Sampling {
            top_p: 0.0,
            ..greedy(8)
        },
        stop(vec![String::new()]),
        stop(vec!["x".repeat(2000)]),
        stop(vec!["x".into(); 17]),
    ];
    for sampling in cases {
        let end = answer(&mut engine, &ask("What is TDX?"), sampling.clone()).end;
        assert!(
            matches!(end, Some(End::Failed(Fault::Client, _))),
            "{sampling:?}: {end:?}"
        );
    }
    assert!(engine.is_idle());
}

#[test]
fn more_requests_than_agreed_are_refused() {
    let mut engine = engine(512);
    for id in 0..8 {
        assert_eq!(engine.start(id, &ask("What is TDX?"), greedy(4)), None);
    }
    let refused = engine.start(8, &ask("What is TDX?"), greedy(4));
    assert!(matches!(
        refused,
        Some(FromEngine::Failed {
            id: 8,
            fault: Fault::Engine,
            ..
        })
    ));
    let mut answers = HashMap::new();
    run(&mut engine, &mut answers);
    assert_eq!(answers.len(), 8);
}
