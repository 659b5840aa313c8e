//! The tensors of a Hugging Face folder: one `model.safetensors`, or shards named by
//! `model.safetensors.index.json`. The files are mapped and not copied; a tensor is copied only where its
//! number format or its alignment has to change.
//!
//! Trusted: that the files do not shrink while they are mapped (in the guest they lie on a read-only dm-verity
//! volume). Not trusted: anything they say.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io,
    path::{Path, PathBuf},
};

use memmap2::{Mmap, MmapOptions};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use serde::Deserialize;
use tch::{Device, Kind, TchError, Tensor};

use crate::config::{ConfigError, read_json};

/// Why the weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The index of shards cannot be used.
    #[error(transparent)]
    Index(#[from] ConfigError),
    /// The index names a file outside of the folder.
    #[error("model.safetensors.index.json names the file {name:?}, which is not a plain file name")]
    ShardName {
        /// What it names.
        name: String,
    },
    /// A file is missing or cannot be mapped.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not a whole safetensors file.
    #[error("{} is not a whole safetensors file", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: SafeTensorError,
    },
    /// Two files hold the same tensor.
    #[error("the tensor {name} is in more than one file")]
    Twice {
        /// Which.
        name: String,
    },
    /// The model needs a tensor that is not there.
    #[error("the tensor {name} is missing")]
    Missing {
        /// Which.
        name: String,
    },
    /// There are tensors that the model does not use: it is another model than config.json says.
    #[error("{count} tensors do not belong to the model that config.json describes, {name} for one")]
    Extra {
        /// How many.
        count: usize,
        /// The first of them.
        name: String,
    },
    /// A tensor's shape is not what config.json says.
    #[error("the tensor {name} has the shape {found:?}, config.json says {expected:?}")]
    Shape {
        /// Which.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// From the configuration.
        expected: Vec<i64>,
    },
    /// A number format that is not run here.
    #[error("the tensor {name} is in {found:?}; F32, BF16 and F16 can be read")]
    NumberFormat {
        /// Which.
        name: String,
        /// In the file.
        found: Dtype,
    },
    /// libtorch refused, for want of memory as a rule.
    #[error("libtorch could not take over the tensor {name}")]
    Torch {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: TchError,
    },
}

/// All tensors of the folder that have not been taken yet.
pub(crate) struct Weights {
    views: BTreeMap<String, TensorView<'static>>,
    kind: Kind,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// Maps the files and checks their headers.
    pub(crate) fn open(folder: &Path, kind: Kind) -> Result<Self, WeightsError> {
        let mut views = BTreeMap::new();
        for path in files(folder)? {
            let tensors = SafeTensors::deserialize(map(&path)?).map_err(|source| WeightsError::Format {
                path: path.clone(),
                source,
            })?;
            for (name, view) in tensors.tensors() {
                if views.insert(name.clone(), view).is_some() {
                    return Err(WeightsError::Twice { name });
                }
            }
        }
        Ok(Self { views, kind })
    }

    /// How many numbers there are in all tensors.
    pub(crate) fn count(&self) -> usize {
        self.views
            .values()
            .map(|view| view.shape().iter().product::<usize>())
            .sum()
    }

    /// Takes one tensor, in the engine's number format.
    pub(crate) fn take(&mut self, name: &str, expected: &[i64]) -> Result<Tensor, WeightsError> {
        let name = name.to_owned();
        let Some(view) = self.views.remove(&name) else {
            return Err(WeightsError::Missing { name });
        };
        let same = view.shape().len() == expected.len()
            && view
                .shape()
                .iter()
                .zip(expected)
                .all(|(&found, &size)| i64::try_from(found) == Ok(size));
        if !same {
            let (found, expected) = (view.shape().to_vec(), expected.to_vec());
            return Err(WeightsError::Shape {
                name,
                found,
                expected,
            });
        }
        let Some(kind) = kind_of(view.dtype()) else {
            return Err(WeightsError::NumberFormat {
                name,
                found: view.dtype(),
            });
        };
        tensor(view.data(), expected, kind)
            .and_then(|tensor| tensor.f_to_kind(self.kind))
            .map_err(|source| WeightsError::Torch { name, source })
    }

    /// Forgets a tensor that some exporters write although it is another one's twin.
    pub(crate) fn ignore(&mut self, name: &str) {
        self.views.remove(name);
    }

    /// Every tensor has to be taken: one too many means that the configuration is another model's.
    pub(crate) fn finish(mut self) -> Result<(), WeightsError> {
        let count = self.views.len();
        match self.views.pop_first() {
            None => Ok(()),
            Some((name, _)) => Err(WeightsError::Extra { count, name }),
        }
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![folder.join("model.safetensors")]);
    }
    let index: ShardIndex = read_json(&index)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    names.into_iter().map(|name| shard(folder, name)).collect()
}

fn shard(folder: &Path, name: String) -> Result<PathBuf, WeightsError> {
    let plain = Path::new(&name)
        .file_name()
        .is_some_and(|file| file == name.as_str());
    if plain {
        Ok(folder.join(name))
    } else {
        Err(WeightsError::ShardName { name })
    }
}

fn kind_of(format: Dtype) -> Option<Kind> {
    match format {
        Dtype::F32 => Some(Kind::Float),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F16 => Some(Kind::Half),
        _ => None,
    }
}

/// Maps a file for good. An engine loads one model and ends with it, so nothing is lost by never unmapping,
/// and no tensor can outlive its bytes.
fn map(path: &Path) -> Result<&'static [u8], WeightsError> {
    let read_error = |source| WeightsError::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(read_error)?;
    let map = mapping::map(&file).map_err(read_error)?;
    Ok(Box::leak(Box::new(map)))
}

fn tensor(bytes: &'static [u8], shape: &[i64], kind: Kind) -> Result<Tensor, TchError> {
    if bytes.as_ptr().addr().is_multiple_of(kind.elt_size_in_bytes()) {
        mapping::borrow(bytes, shape, kind)
    } else {
        Tensor::f_from_data_size(bytes, shape, kind)
    }
}

#[allow(unsafe_code, reason = "mapping a file, and lending the mapping to libtorch")]
mod mapping {
    use super::*;

    /// Maps read-only and reads everything at once, so that no page fault happens while a request runs.
    pub(super) fn map(file: &File) -> io::Result<Mmap> {
        // SAFETY: the bytes must not change while they are borrowed; the module's header says why they do not.
        unsafe { MmapOptions::new().populate().map(file) }
    }

    /// A tensor over bytes that live as long as the process. Nothing writes to weights.
    pub(super) fn borrow(bytes: &'static [u8], shape: &[i64], kind: Kind) -> Result<Tensor, TchError> {
        let elements: usize = shape.iter().map(|&size| size as usize).product();
        assert_eq!(
            bytes.len(),
            elements * kind.elt_size_in_bytes(),
            "safetensors checked the length"
        );
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        // SAFETY: the bytes are as many as shape and kind say, aligned for the kind (the caller looked) and
        // never freed; every bit pattern is a valid float.
        unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, &strides, kind, Device::Cpu) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safetensors::tensor::TensorView;

    use super::*;

    fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
        let views = tensors
            .iter()
            .map(|&(name, dtype, shape, data)| (name, TensorView::new(dtype, shape.to_vec(), data).unwrap()));
        safetensors::serialize_to_file(views, None, path).unwrap();
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn tensors_come_out_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let data = floats(&[1.0, -2.5, 3.0, 0.0, 5.0, 6.0]);
        // One and a half as bf16, then the odd byte count leaves what follows unaligned.
        let half = [0xc0, 0x3f];
        write(
            &folder.path().join("model.safetensors"),
            &[("a", Dtype::F32, &[2, 3], &data), ("b", Dtype::BF16, &[1], &half)],
        );
        let mut weights = Weights::open(folder.path(), Kind::Float).unwrap();
        let a = weights.take("a", &[2, 3]).unwrap();
        assert_eq!(
            Vec::<Vec<f32>>::try_from(&a).unwrap(),
            [[1.0, -2.5, 3.0], [0.0, 5.0, 6.0]]
        );
        let b = weights.take("b", &[1]).unwrap();
        assert_eq!((b.kind(), b.double_value(&[0])), (Kind::Float, 1.5));
        weights.finish().unwrap();
    }

    #[test]
    fn bytes_that_are_not_aligned_are_copied() {
        let bytes: &'static [u8] = Box::leak([&[0], floats(&[7.0]).as_slice()].concat().into_boxed_slice());
        let offset = (1..4).find(|&at| !bytes[at..].as_ptr().addr().is_multiple_of(4));
        let at = offset.unwrap();
        let padded: &'static [u8] = Box::leak([vec![0; at], floats(&[7.0])].concat().into_boxed_slice());
        assert_eq!(
            tensor(&padded[at..], &[1], Kind::Float)
                .unwrap()
                .double_value(&[0]),
            7.0
        );
    }

    #[test]
    fn shards_are_joined_and_twins_refused() {
        let folder = tempfile::tempdir().unwrap();
        let one = floats(&[1.0]);
        let index = |map: &str| fs::write(folder.path().join("model.safetensors.index.json"), map).unwrap();
        write(
            &folder.path().join("1.safetensors"),
            &[("a", Dtype::F32, &[1], &one)],
        );
        write(
            &folder.path().join("2.safetensors"),
            &[("b", Dtype::F32, &[1], &one)],
        );
        index(r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#);
        let mut weights = Weights::open(folder.path(), Kind::Float).unwrap();
        assert_eq!(weights.take("b", &[1]).unwrap().double_value(&[0]), 1.0);
        assert!(matches!(weights.finish(), Err(WeightsError::Extra { count: 1, name }) if name == "a"));

        write(
            &folder.path().join("2.safetensors"),
            &[("a", Dtype::F32, &[1], &one)],
        );
        assert!(matches!(
            Weights::open(folder.path(), Kind::Float),
            Err(WeightsError::Twice { .. })
        ));
        for outside in ["../1.safetensors", "/etc/passwd", "x/1.safetensors", ".."] {
            index(&format!(r#"{{"weight_map": {{"a": "{outside}"}}}}"#));
            let result = Weights::open(folder.path(), Kind::Float);
            assert!(matches!(result, Err(WeightsError::ShardName { .. })), "{outside}");
        }
    }

    #[test]
    fn missing_misshapen_and_foreign_tensors_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        write(
            &path,
            &[
                ("a", Dtype::F32, &[2], &floats(&[1.0, 2.0])),
                ("i", Dtype::I64, &[1], &[0; 8]),
            ],
        );
        let mut weights = Weights::open(folder.path(), Kind::Float).unwrap();
        assert!(matches!(
            weights.take("c", &[1]),
            Err(WeightsError::Missing { .. })
        ));
        assert!(matches!(
            weights.take("a", &[2, 1]),
            Err(WeightsError::Shape { .. })
        ));
        assert!(matches!(
            weights.take("i", &[1]),
            Err(WeightsError::NumberFormat { .. })
        ));
    }

    #[test]
    fn a_cut_file_and_a_giant_header_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        write(&path, &[("a", Dtype::F32, &[2], &floats(&[1.0, 2.0]))]);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(
                Weights::open(folder.path(), Kind::Float).is_err(),
                "cut at {length}"
            );
        }
        for header in [u64::MAX, 1 << 40, 200_000_000, whole.len() as u64] {
            fs::write(&path, [&header.to_le_bytes(), &whole[8..]].concat()).unwrap();
            assert!(
                matches!(
                    Weights::open(folder.path(), Kind::Float),
                    Err(WeightsError::Format { .. })
                ),
                "header of {header}"
            );
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(
            Weights::open(folder.path(), Kind::Float),
            Err(WeightsError::Read { .. })
        ));
    }
}
