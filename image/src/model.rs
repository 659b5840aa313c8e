//! Packs a model in Hugging Face's folder format into a volume that the guest can verify.
//!
//! The folder is the provider's own, yet it may hold links to anywhere (Hugging Face's cache consists of
//! them): only regular files inside the folder are packed.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use cocoon_measurements::VerityTree;
use serde::Serialize;

use crate::{
    erofs::{Content, PathError, Tree, WriteError},
    publish::work_file,
    verity::volume_bytes,
};

/// Files that the engine reads, besides `*.safetensors`.
const FILES: [&str; 8] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
];
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
const WEIGHTS: &str = ".safetensors";
const NAME_BYTES_MAX: usize = 100;
/// How names of files begin that are being written.
const WORK_PREFIX: &str = ".volume-";

/// What stands beside the volume, for the launch document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelVolume {
    /// The model's name in OpenAI's API.
    pub name: String,
    /// How the volume is verified.
    pub verity: VerityTree,
}

/// A finished volume.
#[derive(Debug)]
pub struct Packed {
    /// As written to the JSON file.
    pub volume: ModelVolume,
    /// Where the JSON file is.
    pub description: PathBuf,
    /// Length of each file in the volume, by name.
    pub files: BTreeMap<String, u64>,
    /// Names in the folder that were not packed.
    pub left_out: Vec<String>,
    /// Length of the volume.
    pub bytes: u64,
}

/// Why a model was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The name does not fit into a launch document.
    #[error(
        "the model name {name:?} has to be 1 to {NAME_BYTES_MAX} letters, digits, '.', '_', '-' or '/'; give \
         another --name"
    )]
    Name {
        /// As given.
        name: String,
    },
    /// A folder or file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder is no complete model.
    #[error("{} holds no {what}; give the folder of a model in Hugging Face's format", folder.display())]
    Incomplete {
        /// The folder.
        folder: PathBuf,
        /// What is missing.
        what: String,
    },
    /// A link out of the folder, or not a regular file.
    #[error("{} {problem}", path.display())]
    Refused {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file name cannot be in the volume.
    #[error("a file name cannot be in the volume")]
    Path(#[from] PathError),
    /// The volume was not written.
    #[error("the volume was not written")]
    Write(#[from] WriteError),
    /// The result cannot be put under its name.
    #[error("cannot write {}", path.display())]
    Publish {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Packs the model in `folder` into `out`, with its description in `out` with the extension `json`.
///
/// # Errors
/// See [`PackError`]. Nothing is then under either name that was not there before.
pub fn pack(folder: &Path, name: &str, out: &Path) -> Result<Packed, PackError> {
    check_name(name)?;
    let Collected {
        tree,
        files,
        left_out,
    } = collect(folder)?;
    let description = out.with_extension("json");
    let publish = |path: &Path| {
        let path = path.to_owned();
        move |source| PackError::Publish { path, source }
    };
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if description == out {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the volume cannot be named *.json");
        return Err(publish(out)(source));
    }
    let image = work_file(parent, WORK_PREFIX).map_err(publish(out))?;
    let file = image.as_file().try_clone().map_err(publish(out))?;
    let verity = tree.seal(file, "model")?;
    let bytes = volume_bytes(verity.data_blocks);
    let volume = ModelVolume {
        name: name.to_owned(),
        verity,
    };
    let text = serde_json::to_string_pretty(&volume).expect("plain data") + "\n";
    let json = work_file(parent, WORK_PREFIX).map_err(publish(&description))?;
    fs::write(json.path(), text).map_err(publish(&description))?;
    image.persist(out).map_err(|error| publish(out)(error.error))?;
    json.persist(&description)
        .map_err(|error| publish(&description)(error.error))?;
    Ok(Packed {
        volume,
        description,
        files,
        left_out,
        bytes,
    })
}

fn check_name(name: &str) -> Result<(), PackError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(PackError::Name {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// The files of a model, and the names that are not part of it.
#[derive(Debug, Default)]
struct Collected {
    tree: Tree,
    files: BTreeMap<String, u64>,
    left_out: Vec<String>,
}

fn collect(folder: &Path) -> Result<Collected, PackError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| PackError::Read { path, source }
    };
    let inside = folder.canonicalize().map_err(read(folder))?;
    let mut found = Collected::default();
    for entry in fs::read_dir(&inside).map_err(read(folder))? {
        let name = entry.map_err(read(folder))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if !FILES.contains(&name.as_str()) && !name.ends_with(WEIGHTS) {
            found.left_out.push(name);
            continue;
        }
        let path = folder.join(&name);
        let real = path.canonicalize().map_err(read(&path))?;
        if real.parent() != Some(&inside) {
            return Err(PackError::Refused {
                path,
                problem: "is a link out of the folder; copy the model with `cp -rL` first",
            });
        }
        if !real.metadata().map_err(read(&path))?.is_file() {
            return Err(PackError::Refused {
                path,
                problem: "is not a regular file",
            });
        }
        let content = Content::of_file(&real)?;
        let bytes = content.bytes();
        found.tree.add_file(&format!("/{name}"), 0o644, content)?;
        found.files.insert(name, bytes);
    }
    found.left_out.sort();
    let missing = REQUIRED
        .into_iter()
        .find(|required| !found.files.contains_key(*required))
        .map(str::to_owned);
    let no_weights = || {
        let weights = found.files.keys().any(|name| name.ends_with(WEIGHTS));
        (!weights).then(|| format!("*{WEIGHTS}"))
    };
    match missing.or_else(no_weights) {
        None => Ok(found),
        Some(what) => Err(PackError::Incomplete {
            folder: folder.to_owned(),
            what,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn model(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for (name, content) in [
            ("config.json", "{}"),
            ("tokenizer.json", "{}"),
            ("model.safetensors", "weights"),
            ("README.md", "left out"),
        ] {
            fs::write(folder.join(name), content).unwrap();
        }
    }

    #[test]
    fn a_model_is_packed_the_same_way_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        let mut volumes = Vec::new();
        for place in ["one", "two"] {
            let folder = dir.path().join(place);
            model(&folder);
            let out = dir.path().join(format!("{place}.img"));
            let packed = pack(&folder, "demo", &out).unwrap();
            assert_eq!(packed.left_out, ["README.md"]);
            let json: serde_json::Value =
                serde_json::from_slice(&fs::read(dir.path().join(format!("{place}.json"))).unwrap()).unwrap();
            assert_eq!(json["name"], "demo");
            let root_hash = packed.volume.verity.root_hash.to_string();
            assert_eq!(json["verity"]["root_hash"], root_hash.as_str());
            volumes.push(fs::read(out).unwrap());
        }
        assert!(volumes[0] == volumes[1]);
    }

    #[test]
    fn links_out_of_the_folder_and_special_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        let refused = |problem: &str| {
            let error = pack(&folder, "demo", &dir.path().join("out.img")).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
            assert!(!dir.path().join("out.img").exists());
            assert!(!dir.path().join("out.json").exists());
        };
        let weights = folder.join("model.safetensors");
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        model(&folder);
        fs::remove_file(&weights).unwrap();
        symlink(&secret, &weights).unwrap();
        refused("is a link out of the folder");
        fs::remove_file(&weights).unwrap();
        nix::unistd::mkfifo(&weights, nix::sys::stat::Mode::S_IRUSR).unwrap();
        refused("is not a regular file");
        fs::remove_file(&weights).unwrap();
        symlink("absent", &weights).unwrap();
        refused("cannot read");
    }

    #[test]
    fn an_incomplete_model_is_refused_by_what_is_missing() {
        for missing in ["config.json", "tokenizer.json", "model.safetensors"] {
            let dir = tempfile::tempdir().unwrap();
            model(dir.path());
            fs::remove_file(dir.path().join(missing)).unwrap();
            let error = pack(dir.path(), "demo", &dir.path().join("out.img")).unwrap_err();
            assert!(
                matches!(error, PackError::Incomplete { .. }),
                "{missing}: {error}"
            );
        }
        let absent = pack(Path::new("/absent"), "demo", Path::new("out.img"));
        assert!(matches!(absent, Err(PackError::Read { .. })));
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        for name in ["", "a b", "a\n", "ä", &"x".repeat(101)] {
            assert!(
                matches!(check_name(name), Err(PackError::Name { .. })),
                "{name:?}"
            );
        }
        check_name("Qwen/Qwen3-0.6B").unwrap();
    }
}
