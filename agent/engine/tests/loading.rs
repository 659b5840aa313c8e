//! Folders that cannot be served: each is refused with what is wrong with it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod support;

use std::{fs, path::Path};

use cocoon_engine::{ConfigError, Engine, LoadError, TemplateError, TokenizerError, WeightsError};
use cocoon_protocol::NumericProfile;
use serde_json::{Value, json};
use support::copy_of_demo_model;

fn load(folder: &Path, context_tokens_max: u32) -> Result<Engine, LoadError> {
    Engine::load(folder, NumericProfile::F32, context_tokens_max, 1)
}

/// The error of a demo model that was broken by `change`.
fn refused(change: impl FnOnce(&Path)) -> LoadError {
    let folder = copy_of_demo_model();
    change(folder.path());
    match load(folder.path(), 512) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error,
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Rewrites the header of a safetensors file; the data stay.
fn edit_header(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(
        &path,
        [&length, header.as_bytes(), &bytes[8 + header_end(&bytes)..]].concat(),
    )
    .unwrap();
}

fn header_end(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

fn rename(header: &mut Value, from: &str, to: &str) {
    let header = header.as_object_mut().unwrap();
    let tensor = header.remove(from).unwrap();
    header.insert(to.into(), tensor);
}

#[test]
fn the_untouched_copy_is_loaded() {
    assert!(load(copy_of_demo_model().path(), 512).is_ok());
}

#[test]
fn no_folder_at_all() {
    let error = load(Path::new("/nonexistent"), 512).err().unwrap();
    assert!(matches!(error, LoadError::Config(ConfigError::Read { .. })));
    assert!(
        error.reason().contains("/nonexistent/config.json"),
        "{}",
        error.reason()
    );
}

#[test]
fn another_architecture() {
    let error = refused(|folder| {
        edit(&folder.join("config.json"), |config| {
            config["model_type"] = json!("llama");
        });
    });
    assert!(
        error.reason().contains("model_type is llama"),
        "{}",
        error.reason()
    );
}

#[test]
fn a_configuration_that_is_no_json() {
    let error = refused(|folder| fs::write(folder.join("config.json"), "{").unwrap());
    assert!(matches!(error, LoadError::Config(ConfigError::Json { .. })));
}

#[test]
fn a_longer_context_than_the_model_has() {
    let error = load(&support::demo_model(), 1 << 20).err().unwrap();
    assert!(
        error.reason().contains("limits.context_tokens_max"),
        "{}",
        error.reason()
    );
}

#[test]
fn a_missing_tensor() {
    let error = refused(|folder| {
        edit_header(folder, |header| {
            rename(header, "model.norm.weight", "other.weight");
        });
    });
    assert!(
        matches!(&error, LoadError::Weights(WeightsError::Missing { name }) if name == "model.norm.weight")
    );
}

#[test]
fn a_tensor_too_many() {
    // One layer less in the configuration leaves the last layer's eleven tensors over.
    let error = refused(|folder| {
        edit(&folder.join("config.json"), |config| {
            config["num_hidden_layers"] = json!(3);
        });
    });
    assert!(
        matches!(&error, LoadError::Weights(WeightsError::Extra { count: 11, .. })),
        "{error:?}"
    );
}

#[test]
fn a_tensor_of_another_shape() {
    let error = refused(|folder| {
        edit(&folder.join("config.json"), |config| {
            config["intermediate_size"] = json!(100);
        });
    });
    assert!(matches!(error, LoadError::Weights(WeightsError::Shape { .. })));
    assert!(error.reason().contains("[100,"), "{}", error.reason());
}

#[test]
fn a_shape_that_does_not_fit_its_bytes() {
    let error = refused(|folder| {
        edit_header(folder, |header| {
            header["model.norm.weight"]["shape"] = json!([1_u64 << 40]);
        });
    });
    assert!(matches!(error, LoadError::Weights(WeightsError::Format { .. })));
}

#[test]
fn a_truncated_file() {
    let error = refused(|folder| {
        let path = folder.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    });
    assert!(matches!(error, LoadError::Weights(WeightsError::Format { .. })));
}

#[test]
fn a_giant_header() {
    let error = refused(|folder| {
        let path = folder.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(path, bytes).unwrap();
    });
    assert!(matches!(error, LoadError::Weights(WeightsError::Format { .. })));
}

#[test]
fn weights_that_are_no_numbers() {
    let error = refused(|folder| {
        let path = folder.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let start = 8 + header_end(&bytes);
        // All ones is a NaN in bf16.
        bytes[start..].fill(0xff);
        fs::write(path, bytes).unwrap();
    });
    assert!(matches!(error, LoadError::NotFinite));
}

#[test]
fn no_tokenizer_and_a_broken_one() {
    let error = refused(|folder| fs::remove_file(folder.join("tokenizer.json")).unwrap());
    assert!(matches!(error, LoadError::Tokenizer(TokenizerError::File(_))));
    let error = refused(|folder| fs::write(folder.join("tokenizer.json"), "{}").unwrap());
    assert!(matches!(
        error,
        LoadError::Tokenizer(TokenizerError::Format { .. })
    ));
}

#[test]
fn no_template_and_a_broken_one() {
    let change = |template: Value| {
        move |folder: &Path| {
            edit(&folder.join("tokenizer_config.json"), |config| {
                config["chat_template"] = template;
            });
        }
    };
    assert!(matches!(
        refused(change(Value::Null)),
        LoadError::Template(TemplateError::Missing)
    ));
    assert!(matches!(
        refused(change(json!("{% if %}"))),
        LoadError::Template(TemplateError::Broken(_))
    ));
}

#[test]
fn shards_are_as_good_as_one_file() {
    let folder = copy_of_demo_model();
    let one = folder.path().join("model.safetensors");
    fs::rename(&one, folder.path().join("model-00001-of-00001.safetensors")).unwrap();
    let bytes = fs::read(folder.path().join("model-00001-of-00001.safetensors")).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_end(&bytes)]).unwrap();
    let names = header
        .as_object()
        .unwrap()
        .keys()
        .filter(|name| *name != "__metadata__");
    let map: serde_json::Map<_, _> = names
        .map(|name| (name.clone(), json!("model-00001-of-00001.safetensors")))
        .collect();
    let index = json!({"weight_map": map});
    fs::write(
        folder.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    assert!(load(folder.path(), 512).is_ok());
}
