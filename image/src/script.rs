//! A part of a release image that one of the recipe's scripts makes in the builder root: firmware, libtorch, NVIDIA's
//! driver.
//!
//! The script finds its locked inputs in `/inputs` under the names that the lock gives them, a part that it builds upon
//! in `/source`, and leaves one file or folder in `/build`. That is kept in the cache under a digest of everything that
//! decides it: builder root, inputs, script, arguments and the other part's inputs. How many compilers run at a time is told in `JOBS` and decides nothing.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use cocoon_evidence::Digest32;

use crate::{
    builder::BuilderRoot,
    command::{self, CommandError},
    given::{GivenError, GivenInput},
    input::{InputError, Sources},
    lock::{Lock, LockError, LockedInput},
    publish::{WORK_PREFIX, remove_killed, replace},
    recipe,
    sandbox::{BUILD, Bind},
    workshop::Made,
};

/// Changes when this module calls scripts differently.
const METHOD: &str = "script-1";

/// What is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Script<'a> {
    /// What it makes; also its folder in the cache.
    pub part: &'static str,
    /// Its name in the recipe's folder.
    pub name: &'static str,
    /// What the lock calls its inputs.
    pub inputs: &'static [&'static str],
    /// Those that have to be brought.
    pub given: &'static [&'static str],
    /// The folder that it sees as `/source`.
    pub source: Option<&'a Made>,
    /// As the script wants them.
    pub arguments: &'a [&'a str],
    /// What it leaves in `/build`.
    pub result: &'static str,
}

/// A script with everything that decides what it makes.
#[derive(Debug)]
pub struct ScriptPlan {
    part: &'static str,
    result: &'static str,
    name: &'static str,
    text: Vec<u8>,
    inputs: Vec<LockedInput>,
    given: Vec<GivenInput>,
    source: Option<Made>,
    arguments: Vec<String>,
    key: Digest32,
}

/// Why a part was not made.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The lock lacks an input.
    #[error("what it is made from is not locked")]
    Lock(#[from] LockError),
    /// An input is not at hand.
    #[error("what it is made from is not at hand")]
    Input(#[from] InputError),
    /// What has to be brought is not at hand.
    #[error("what it is made from was not brought")]
    Given(#[from] GivenError),
    /// A step failed.
    #[error("its script failed; the whole log is {}", log.display())]
    Run {
        /// What was said.
        log: PathBuf,
        /// Why.
        source: CommandError,
    },
    /// The cache or the recipe cannot be used.
    #[error("cannot use {} (it takes a few GB for some minutes)", path.display())]
    File {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ScriptPlan {
    /// Collects what decides the part's bytes.
    ///
    /// # Errors
    /// See [`ScriptError`].
    pub fn new(script: Script, lock: &Lock, root: Digest32, source: &Path) -> Result<Self, ScriptError> {
        let path = source.join(recipe::FOLDER).join(script.name);
        let text = fs::read(&path).map_err(|source| file_error(&path, source))?;
        let inputs = script.inputs.iter().map(|name| lock.source(name).cloned());
        let given = script.given.iter().map(|name| lock.given_source(name).cloned());
        let mut plan = Self {
            part: script.part,
            result: script.result,
            name: script.name,
            text,
            inputs: inputs.collect::<Result<_, _>>()?,
            given: given.collect::<Result<_, _>>()?,
            source: script.source.cloned(),
            arguments: script.arguments.iter().map(ToString::to_string).collect(),
            key: root,
        };
        plan.key = plan.key(root);
        Ok(plan)
    }

    /// Over the method, the root, and every name and content in order, each preceded by its length.
    fn key(&self, root: Digest32) -> Digest32 {
        let fetched = self.inputs.iter().map(|input| (&input.name, &input.sha256));
        let given = self.given.iter().map(|input| (&input.name, &input.sha256));
        let beside = self.source.iter().flat_map(|made| &made.inputs);
        let named = fetched.chain(given).chain(beside);
        let named = named.flat_map(|(name, sha256)| [name.as_bytes(), sha256.as_bytes()]);
        let parts: Vec<&[u8]> = [METHOD.as_bytes(), root.as_bytes(), &self.text]
            .into_iter()
            .chain(named)
            .chain(self.arguments.iter().map(String::as_bytes))
            .collect();
        let lengths: Vec<_> = parts
            .iter()
            .map(|part| (part.len() as u64).to_le_bytes())
            .collect();
        let pairs = lengths.iter().zip(&parts);
        Digest32::of_parts(pairs.flat_map(|(length, part)| [length.as_slice(), *part]))
    }

    /// The inputs for the manifest, beside the builder root.
    pub fn inputs(&self) -> BTreeMap<String, Digest32> {
        let mut inputs = BTreeMap::from([(self.name.to_owned(), Digest32::of(&self.text))]);
        inputs.extend(self.inputs.iter().map(|input| (input.file.clone(), input.sha256)));
        inputs.extend(self.given.iter().map(|input| (input.file.clone(), input.sha256)));
        inputs
    }

    /// The part, if the cache has it.
    pub fn cached(&self, cache: &Path) -> Option<PathBuf> {
        let path = self.path(cache);
        path.exists().then_some(path)
    }

    /// Makes the part in the cache, again if it is there. The caller holds the cache's lock.
    ///
    /// # Errors
    /// See [`ScriptError`]. Nothing incomplete is then under the part's name.
    pub fn make(&self, sources: &Sources, root: &BuilderRoot, jobs: usize) -> Result<PathBuf, ScriptError> {
        let folder = sources.cache.join(self.part);
        let swept = fs::create_dir_all(&folder).and_then(|()| remove_killed(&folder));
        swept.map_err(|source| file_error(&folder, source))?;
        let work = tempfile::Builder::new()
            .prefix(WORK_PREFIX)
            .tempdir_in(&folder)
            .map_err(|source| file_error(&folder, source))?;
        let (inputs, build) = (work.path().join("inputs"), work.path().join("build"));
        self.lay_out(sources, &inputs, &build)?;

        let mut sandbox = root.sandbox([(&inputs, "/inputs", false), (&build, BUILD, true)]);
        sandbox.binds.extend(self.source.iter().map(|made| Bind {
            from: made.path.clone(),
            to: "/source".into(),
            writable: false,
        }));
        let log = folder.join("build.log");
        fs::write(&log, "").map_err(|source| file_error(&log, source))?;
        let mut bash = sandbox.command("/bin/bash", &[("JOBS", &jobs.to_string())]);
        bash.arg(format!("/inputs/{}", self.name)).args(&self.arguments);
        command::run(&mut bash, Some(&log)).map_err(|source| ScriptError::Run { log, source })?;

        let (made, path) = (build.join(self.result), self.path(&sources.cache));
        // Later builds trust what has this name: a power cut must not leave it half written.
        nix::unistd::sync();
        replace(&made, &path).map_err(|source| file_error(&made, source))?;
        Ok(path)
    }

    fn lay_out(&self, sources: &Sources, inputs: &Path, build: &Path) -> Result<(), ScriptError> {
        for new in [inputs, build] {
            fs::create_dir(new).map_err(|source| file_error(new, source))?;
        }
        let script = inputs.join(self.name);
        fs::write(&script, &self.text).map_err(|source| file_error(&script, source))?;
        let lay = |name: &str, found: &Path| {
            let to = inputs.join(name);
            let linked = fs::hard_link(found, &to).or_else(|_| fs::copy(found, &to).map(|_| ()));
            linked.map_err(|source| file_error(found, source))
        };
        for input in &self.inputs {
            lay(&input.name, &sources.find(input)?)?;
        }
        for input in &self.given {
            lay(&input.name, &input.find(sources)?)?;
        }
        Ok(())
    }

    fn path(&self, cache: &Path) -> PathBuf {
        cache.join(self.part).join(self.key.to_string())
    }
}

fn file_error(path: &Path, source: io::Error) -> ScriptError {
    ScriptError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(source: &Path, arguments: &[&str], root: &[u8]) -> ScriptPlan {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let script = Script {
            part: "firmware",
            name: "firmware.sh",
            inputs: &["edk2", "edk2-debian"],
            given: &["nvidia-driver"],
            source: None,
            arguments,
            result: "firmware.fd",
        };
        ScriptPlan::new(script, &Lock::load(tree).unwrap(), Digest32::of(root), source).unwrap()
    }

    #[test]
    fn a_part_made_by_another_script_compiler_or_argument_is_not_taken_from_the_cache() {
        let source = tempfile::tempdir().unwrap();
        let recipe = source.path().join(recipe::FOLDER);
        fs::create_dir_all(&recipe).unwrap();
        fs::write(recipe.join("firmware.sh"), "make").unwrap();
        let base = plan(source.path(), &["a", "b"], b"root").key;
        assert_eq!(plan(source.path(), &["a", "b"], b"root").key, base);
        assert_ne!(plan(source.path(), &["ab"], b"root").key, base);
        assert_ne!(plan(source.path(), &["a", "b"], b"another root").key, base);
        let mut other = plan(source.path(), &["a", "b"], b"root");
        other.inputs[1].sha256 = Digest32::of(b"other patches");
        assert_ne!(other.key(Digest32::of(b"root")), base);
        let mut other = plan(source.path(), &["a", "b"], b"root");
        other.given[0].sha256 = Digest32::of(b"another driver");
        assert_ne!(other.key(Digest32::of(b"root")), base);
        let mut other = plan(source.path(), &["a", "b"], b"root");
        other.source = Some(Made {
            path: "modules-tree".into(),
            inputs: [("kernel.config".to_owned(), Digest32::of(b"CONFIG_MODULES=y"))].into(),
        });
        let of_one_kernel = other.key(Digest32::of(b"root"));
        assert_ne!(of_one_kernel, base);
        other
            .source
            .as_mut()
            .unwrap()
            .inputs
            .insert("patch".into(), Digest32::of(b"a patch"));
        assert_ne!(other.key(Digest32::of(b"root")), of_one_kernel);
        fs::write(recipe.join("firmware.sh"), "make something else").unwrap();
        assert_ne!(plan(source.path(), &["a", "b"], b"root").key, base);
    }
}
