//! The forward pass against Hugging Face transformers: `reference.safetensors` holds its logits on the demo
//! model's weights, written by `scripts/demo-model/reference.py`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

use std::{fs, path::Path};

use cocoon_engine::Model;
use cocoon_protocol::NumericProfile;
use safetensors::{SafeTensors, tensor::TensorView};
use tch::{Kind, Tensor};

/// In f32 two implementations differ by rounding only.
const F32_DIFFERENCE_MAX: f64 = 1e-4;
/// Two steps of bf16 at the size of these logits, 16 to 32. transformers' own bf16 is 0.09 from its f32.
const BF16_DIFFERENCE_MAX: f64 = 0.25;

struct Prompt {
    ids: Vec<u32>,
    f32: Tensor,
    bf16: Tensor,
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn tensor(view: &TensorView<'_>, kind: Kind) -> Tensor {
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    Tensor::from_data_size(view.data(), &shape, kind)
}

fn prompts() -> Vec<Prompt> {
    let bytes = fs::read(here().join("tests/reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let get = |name: &str, kind| tensor(&file.tensor(name).unwrap(), kind);
    let count = file.names().len() / 3;
    assert!(count > 0);
    let prompt = |index: usize| {
        let ids: Vec<i64> = Vec::try_from(&get(&format!("{index}.ids"), Kind::Int64)).unwrap();
        Prompt {
            ids: ids.iter().map(|&id| id as u32).collect(),
            f32: get(&format!("{index}.f32"), Kind::Float),
            bf16: get(&format!("{index}.bf16"), Kind::BFloat16).to_kind(Kind::Float),
        }
    };
    (0..count).map(prompt).collect()
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn model(profile: NumericProfile) -> Model {
    Model::read(&here().join("demo-model"), profile).unwrap()
}

/// Logits of a prompt that is given in pieces of these sizes, the last one repeated.
fn in_pieces(model: &Model, ids: &[u32], sizes: &[usize]) -> Tensor {
    let mut cache = model.cache(ids.len()).unwrap();
    let (mut rest, mut rows, mut sizes) = (ids, vec![], sizes.iter().copied().peekable());
    let mut size = 1;
    while !rest.is_empty() {
        size = sizes.next().unwrap_or(size).min(rest.len());
        let (piece, after) = rest.split_at(size);
        rows.push(model.logits(&mut cache, piece).unwrap());
        rest = after;
    }
    assert_eq!(cache.len(), ids.len());
    Tensor::cat(&rows, 0)
}

#[test]
fn f32_prefill_and_decode_agree_with_transformers() {
    let model = model(NumericProfile::F32);
    for prompt in prompts() {
        // At once; one by one (every step through the KV cache); the end one by one; in chunks.
        for sizes in [&[usize::MAX][..], &[1], &[5, 1], &[3, 4]] {
            let found = difference(&in_pieces(&model, &prompt.ids, sizes), &prompt.f32);
            assert!(found <= F32_DIFFERENCE_MAX, "{found:e} with pieces of {sizes:?}");
        }
    }
}

#[test]
fn bf16_agrees_within_two_steps() {
    let model = model(NumericProfile::Bf16);
    for prompt in prompts() {
        for sizes in [&[usize::MAX][..], &[5, 1]] {
            let found = difference(&in_pieces(&model, &prompt.ids, sizes), &prompt.bf16);
            assert!(found <= BF16_DIFFERENCE_MAX, "{found} with pieces of {sizes:?}");
        }
    }
}

#[test]
fn the_reference_is_not_met_by_accident() {
    let model = model(NumericProfile::F32);
    let prompt = &prompts()[0];
    let mut other = prompt.ids.clone();
    other[3] += 1;
    assert!(difference(&in_pieces(&model, &other, &[usize::MAX]), &prompt.f32) > 0.1);
}

#[test]
fn the_last_logits_are_the_last_row() {
    let model = model(NumericProfile::F32);
    let prompt = &prompts()[0];
    let last = model
        .last_logits(&mut model.cache(prompt.ids.len()).unwrap(), &prompt.ids)
        .unwrap();
    let row = prompt.f32.get(prompt.f32.size()[0] - 1);
    assert!(difference(&Tensor::from_slice(&last), &row) <= F32_DIFFERENCE_MAX);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let model = model(NumericProfile::F32);
    let mut cache = model.cache(2).unwrap();
    assert!(model.logits(&mut cache, &[]).is_err());
    assert!(model.logits(&mut cache, &[0, 0, 0]).is_err());
    assert!(model.logits(&mut cache, &[u32::MAX]).is_err());
    assert!(cache.is_empty());
    assert!(model.logits(&mut cache, &[0, 0]).is_ok());
    assert!(model.logits(&mut cache, &[0]).is_err());
}
