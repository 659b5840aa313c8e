//! Finds the shared libraries that programs need, by reading what the dynamic linker will read.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use cocoon_evidence::Digest32;
use object::{
    Endianness,
    elf::{DT_NEEDED, DT_STRSZ, DT_STRTAB, FileHeader64, PT_DYNAMIC, PT_INTERP, PT_LOAD},
    read::{
        ReadCache, ReadRef as _, StringTable,
        elf::{Dyn as _, FileHeader as _, ProgramHeader as _},
    },
};

use crate::{
    command::{self, CommandError},
    input::hash_file,
    recipe::LibraryFolder,
};

/// Where libraries lie in the root: the first folder that Debian's dynamic linker looks into.
pub const INSTALL_FOLDER: &str = "/lib/x86_64-linux-gnu";

/// More libraries than any program here needs.
const LIBRARIES_MAX: usize = 200;

/// What an ELF file asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Path of the dynamic linker; only programs have one.
    pub interpreter: Option<String>,
    /// Names of libraries.
    pub libraries: Vec<String>,
}

/// A library that goes into the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Absolute path in the root.
    pub install: String,
    /// On this machine.
    pub path: PathBuf,
    /// Name of the folder it was found in.
    pub source: String,
    /// To be stripped.
    pub strip: bool,
    /// SHA-256 before stripping.
    pub sha256: Digest32,
}

/// Why the libraries cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not an ELF file for x86-64.
    #[error("{} is not a usable ELF file", path.display())]
    Elf {
        /// Which.
        path: PathBuf,
        /// Why.
        source: object::read::Error,
    },
    /// No folder has it.
    #[error("{name}, which {} needs, is in none of {}", needed_by.display(), folders.join(", "))]
    Missing {
        /// The library.
        name: String,
        /// By what.
        needed_by: PathBuf,
        /// Where it was looked for.
        folders: Vec<String>,
    },
    /// An endless or absurd chain of needs.
    #[error("the programs need more than {LIBRARIES_MAX} libraries")]
    TooMany,
    /// Stripping failed.
    #[error("a library was not stripped")]
    Strip(#[from] CommandError),
}

/// Reads an ELF file's dynamic section; a static program needs nothing.
///
/// # Errors
/// See [`LibraryError`].
pub fn needs(path: &Path) -> Result<Needs, LibraryError> {
    let file = File::open(path).map_err(|source| file_error(path, source))?;
    // Reads only the parts that are asked for: libtorch_cpu has 450 MB.
    let data = ReadCache::new(file);
    read_needs(&data).map_err(|source| LibraryError::Elf {
        path: path.to_owned(),
        source,
    })
}

fn read_needs(data: &ReadCache<File>) -> object::read::Result<Needs> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, data)?;
    let mut needs = Needs::default();
    for segment in segments {
        match segment.p_type(endian) {
            PT_INTERP => {
                let offset = segment.p_offset(endian);
                let bytes =
                    data.read_bytes_at_until(offset..offset.saturating_add(segment.p_filesz(endian)), 0);
                needs.interpreter = bytes
                    .ok()
                    .map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            }
            PT_DYNAMIC => {
                let Some(entries) = segment.dynamic(endian, data)? else {
                    continue;
                };
                let value = |tag: i64| {
                    entries
                        .iter()
                        .find(|entry| entry.tag(endian) == tag)
                        .map(|entry| entry.d_val(endian))
                };
                let (Some(address), Some(bytes)) = (value(DT_STRTAB), value(DT_STRSZ)) else {
                    continue;
                };
                // The table is given by address; a loaded segment says where that is in the file.
                let start = segments
                    .iter()
                    .filter(|load| load.p_type(endian) == PT_LOAD)
                    .find_map(|load| {
                        let inside = address.checked_sub(load.p_vaddr(endian))?;
                        (inside < load.p_filesz(endian)).then(|| load.p_offset(endian) + inside)
                    })
                    .unwrap_or_default();
                let strings = StringTable::new(data, start, start.saturating_add(bytes));
                for entry in entries {
                    if entry.tag(endian) == DT_NEEDED {
                        let name = entry.string(endian, strings)?;
                        needs.libraries.push(String::from_utf8_lossy(name).into_owned());
                    }
                }
            }
            _ => {}
        }
    }
    Ok(needs)
}

/// All libraries that `programs` need, directly or not, by name. `opened` are those that they open while they run.
///
/// # Errors
/// See [`LibraryError`].
pub fn closure(
    programs: &[PathBuf],
    opened: &[String],
    folders: &[LibraryFolder],
) -> Result<BTreeMap<String, Library>, LibraryError> {
    let mut found = BTreeMap::new();
    let mut open = vec![];
    for name in opened {
        let install = format!("{INSTALL_FOLDER}/{name}");
        let library = locate(name, install, Path::new("the recipe"), folders)?;
        open.push(library.path.clone());
        found.insert(name.clone(), library);
    }
    // The last comes first: only programs know where the dynamic linker has to lie, which libraries name, too.
    open.extend_from_slice(programs);
    while let Some(path) = open.pop() {
        let needs = needs(&path)?;
        // The dynamic linker is found by its path, everything else by its name.
        let linker = needs.interpreter.iter().filter_map(|install| {
            let name = install.rsplit('/').next()?;
            Some((name.to_owned(), install.clone()))
        });
        let libraries = needs
            .libraries
            .iter()
            .map(|name| (name.clone(), format!("{INSTALL_FOLDER}/{name}")));
        for (name, install) in linker.chain(libraries) {
            if found.contains_key(&name) {
                continue;
            }
            let library = locate(&name, install, &path, folders)?;
            open.push(library.path.clone());
            found.insert(name, library);
            if found.len() > LIBRARIES_MAX {
                return Err(LibraryError::TooMany);
            }
        }
    }
    Ok(found)
}

fn locate(
    name: &str,
    install: String,
    needed_by: &Path,
    folders: &[LibraryFolder],
) -> Result<Library, LibraryError> {
    for folder in folders {
        let path = Path::new(&folder.folder).join(name);
        if path.is_file() {
            let (_, sha256) = hash_file(&path).map_err(|source| file_error(&path, source))?;
            return Ok(Library {
                install,
                path,
                source: folder.name.clone(),
                strip: folder.strip,
                sha256,
            });
        }
    }
    Err(LibraryError::Missing {
        name: name.to_owned(),
        needed_by: needed_by.to_owned(),
        folders: folders.iter().map(|folder| folder.folder.clone()).collect(),
    })
}

/// The file to put into the root: the library itself, or its stripped copy in the cache.
///
/// # Errors
/// See [`LibraryError`].
pub fn prepared(library: &Library, strip_version: &str, cache: &Path) -> Result<PathBuf, LibraryError> {
    if !library.strip {
        return Ok(library.path.clone());
    }
    let key = Digest32::of_parts([library.sha256.as_bytes().as_slice(), strip_version.as_bytes()]);
    let folder = cache.join("stripped");
    let stripped = folder.join(key.to_string());
    if stripped.is_file() {
        return Ok(stripped);
    }
    fs::create_dir_all(&folder).map_err(|source| file_error(&folder, source))?;
    let work = tempfile::NamedTempFile::new_in(&folder).map_err(|source| file_error(&folder, source))?;
    command::run(
        Command::new("strip")
            .arg("--strip-unneeded")
            .arg("-o")
            .args([work.path(), &library.path]),
        None,
    )?;
    work.persist(&stripped)
        .map_err(|error| file_error(&stripped, error.error))?;
    Ok(stripped)
}

fn file_error(path: &Path, source: io::Error) -> LibraryError {
    LibraryError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(path: &Path, strip: bool) -> LibraryFolder {
        LibraryFolder {
            name: "test".into(),
            folder: path.display().to_string(),
            strip,
        }
    }

    fn gcc(dir: &Path, arguments: &[&str]) {
        command::run(Command::new("gcc").current_dir(dir).args(arguments), None).unwrap();
    }

    /// `program` needs `liba.so`, which needs `libb.so`.
    fn chain(dir: &Path) {
        fs::write(dir.join("b.c"), "int b(void) { return 1; }").unwrap();
        fs::write(dir.join("a.c"), "int b(void); int a(void) { return b(); }").unwrap();
        fs::write(dir.join("main.c"), "int a(void); int main(void) { return a(); }").unwrap();
        let shared = ["-nostdlib", "-shared", "-fPIC"];
        gcc(
            dir,
            &[&shared[..], &["-Wl,-soname,libb.so", "-o", "libb.so", "b.c"]].concat(),
        );
        gcc(
            dir,
            &[
                &shared[..],
                &["-Wl,-soname,liba.so", "-o", "liba.so", "a.c", "libb.so"],
            ]
            .concat(),
        );
        gcc(
            dir,
            &[
                "-nostartfiles",
                "-nostdlib",
                "-Wl,-e,main",
                "-o",
                "program",
                "main.c",
                "liba.so",
                "-Wl,-rpath-link,.",
            ],
        );
        fs::copy(dir.join("libb.so"), dir.join("ld-linux-x86-64.so.2")).unwrap();
    }

    #[test]
    fn needs_of_needs_are_found_and_the_linker_keeps_its_path() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path());
        let found = closure(&[dir.path().join("program")], &[], &[folder(dir.path(), false)]).unwrap();
        let installs: Vec<_> = found.values().map(|library| library.install.as_str()).collect();
        assert_eq!(
            installs,
            [
                "/lib64/ld-linux-x86-64.so.2",
                "/lib/x86_64-linux-gnu/liba.so",
                "/lib/x86_64-linux-gnu/libb.so"
            ]
        );
    }

    #[test]
    fn a_library_opened_by_name_comes_with_what_it_needs_itself() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path());
        let folders = [folder(dir.path(), false)];
        let opened = |name: &str| closure(&[], &[name.to_owned()], &folders);
        let names: Vec<_> = opened("liba.so").unwrap().into_keys().collect();
        assert_eq!(names, ["liba.so", "libb.so"]);
        let error = opened("libc.so").unwrap_err();
        assert!(
            error.to_string().contains("libc.so, which the recipe needs"),
            "{error}"
        );
    }

    #[test]
    fn the_linker_keeps_its_path_where_a_library_opened_by_name_needs_it() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path());
        let shared = ["-nostdlib", "-shared", "-fPIC"];
        let linker = [
            &shared[..],
            &["-Wl,-soname,ld-linux-x86-64.so.2", "-o", "linker.so", "b.c"],
        ];
        gcc(dir.path(), &linker.concat());
        let opened = [&shared[..], &["-o", "libopened.so", "a.c", "linker.so"]];
        gcc(dir.path(), &opened.concat());
        let program = dir.path().join("program");
        let found = closure(&[program], &["libopened.so".into()], &[folder(dir.path(), false)]).unwrap();
        let linker = &found["ld-linux-x86-64.so.2"];
        assert_eq!(linker.install, "/lib64/ld-linux-x86-64.so.2");
    }

    #[test]
    fn a_missing_library_is_named_with_what_needs_it() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path());
        fs::remove_file(dir.path().join("libb.so")).unwrap();
        let error = closure(&[dir.path().join("program")], &[], &[folder(dir.path(), false)]).unwrap_err();
        let LibraryError::Missing { name, needed_by, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(
            (name.as_str(), needed_by),
            ("libb.so", &dir.path().join("liba.so"))
        );
    }

    #[test]
    fn truncated_files_are_refused_without_panic() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path());
        let whole = fs::read(dir.path().join("program")).unwrap();
        let path = dir.path().join("cut");
        for length in (0..whole.len()).step_by(whole.len() / 50) {
            fs::write(&path, &whole[..length]).unwrap();
            let _ = needs(&path);
        }
        fs::write(&path, &whole[..32]).unwrap();
        assert!(matches!(needs(&path), Err(LibraryError::Elf { .. })));
    }

    #[test]
    fn stripping_keeps_what_linking_needs_and_is_cached() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path());
        let found = closure(&[dir.path().join("program")], &[], &[folder(dir.path(), true)]).unwrap();
        let library = &found["liba.so"];
        let stripped = prepared(library, "1", dir.path()).unwrap();
        assert_eq!(needs(&stripped).unwrap(), needs(&library.path).unwrap());
        assert!(stripped.metadata().unwrap().len() < library.path.metadata().unwrap().len());
        assert_eq!(prepared(library, "1", dir.path()).unwrap(), stripped);
        assert_ne!(
            prepared(library, "2", dir.path()).unwrap(),
            stripped,
            "another strip"
        );
    }
}
