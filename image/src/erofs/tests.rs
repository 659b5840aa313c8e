use std::{
    fs::{self, File},
    io,
    path::Path,
    process::Command,
};

use super::{layout::DIRECTORY_MODE, *};
use crate::verity::{BLOCK_BYTES, Sealed, VerityError, VerityReader};

/// Content of every length that matters for padding, and a directory of several blocks.
fn tree() -> Tree {
    let mut tree = Tree::default();
    tree.add_directory("/empty").unwrap();
    for length in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 300_000] {
        let content = Content::Bytes((0..length).map(|at| (at % 251) as u8).collect());
        tree.add_file(&format!("/files/{length}"), 0o644, content)
            .unwrap();
    }
    for number in 0..400 {
        let path = format!("/many/a-rather-long-name-{number}");
        let content = Content::Bytes(path.clone().into_bytes());
        tree.add_file(&path, 0o755, content).unwrap();
    }
    tree
}

fn write(tree: &Tree, path: &Path) -> (Sealed, Vec<Entry>) {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    tree.write(file, "test").unwrap()
}

#[test]
fn fsck_extracts_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let (_, entries) = write(&tree(), &image);
    let out = dir.path().join("out");
    let Ok(output) = Command::new("fsck.erofs")
        .arg(format!("--extract={}", out.display()))
        .arg(&image)
        .output()
    else {
        eprintln!("SKIP: fsck.erofs (Debian: erofs-utils) is not installed");
        return;
    };
    assert!(output.status.success(), "{output:?}");
    for entry in &entries {
        let path = out.join(entry.path.trim_start_matches('/'));
        if entry.mode == DIRECTORY_MODE {
            assert!(path.is_dir(), "{}", entry.path);
        } else {
            assert_eq!(
                Digest32::of(&fs::read(&path).unwrap()),
                entry.sha256,
                "{}",
                entry.path
            );
        }
    }
    let count = fs::read_dir(out.join("many")).unwrap().count();
    assert_eq!((count, entries.len()), (400, 1 + 3 + 6 + 400));
}

#[test]
fn the_same_tree_gives_the_same_bytes_whatever_the_sources_are() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["b", "a", "c"];
    for (folder, reversed) in [("one", false), ("two", true)] {
        let folder = dir.path().join(folder);
        fs::create_dir(&folder).unwrap();
        let mut order = names;
        if reversed {
            order.reverse();
        }
        let mut tree = Tree::default();
        for name in order {
            let path = folder.join(name);
            fs::write(&path, name.repeat(5000)).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
            if reversed {
                file.set_times(times).unwrap();
            }
            let content = Content::of_file(&path).unwrap();
            tree.add_file(&format!("/dir/{name}"), 0o644, content).unwrap();
        }
        write(&tree, &folder.with_extension("img"));
    }
    let read = |name| fs::read(dir.path().join(name)).unwrap();
    assert!(read("one.img") == read("two.img"));
}

#[test]
fn every_byte_of_content_reaches_the_root_hash_and_every_name_the_salt() {
    let seal = |name: &str, content: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        tree.add_file(name, 0o644, Content::Bytes(content.to_vec()))
            .unwrap();
        write(&tree, &dir.path().join("image")).0.verity
    };
    let (base, content, name) = (seal("/a", b"one"), seal("/a", b"two"), seal("/b", b"one"));
    assert_ne!(base.root_hash, content.root_hash);
    assert_eq!(base.salt, content.salt);
    assert_ne!(base.salt, name.salt);
}

#[test]
fn a_source_that_shrinks_grows_or_vanishes_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, "12345").unwrap();
    let mut tree = Tree::default();
    tree.add_file("/file", 0o644, Content::of_file(&source).unwrap())
        .unwrap();
    let attempt = || tree.write(tempfile::tempfile().unwrap(), "test").unwrap_err();
    for content in ["1234", "123456"] {
        fs::write(&source, content).unwrap();
        assert!(matches!(attempt(), WriteError::Changed { expected: 5, .. }));
    }
    fs::remove_file(&source).unwrap();
    assert!(matches!(attempt(), WriteError::Source { .. }));
    assert!(Content::of_file(dir.path()).is_err(), "a directory is no file");
}

#[test]
fn a_full_disk_is_named_as_such() {
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let error = tree().write(full, "test").unwrap_err();
    let WriteError::Volume(source) = error else {
        panic!("{error}");
    };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
}

/// Reads the names of a volume in memory, with the same bounds as one on disk.
fn read_bytes(volume: &[u8]) -> Result<Layout, FormError> {
    let count = (volume.len() / BLOCK_BYTES) as u64;
    let mut fetch = |number: u64| {
        let block = volume.chunks_exact(BLOCK_BYTES).nth(number as usize);
        let block = block.ok_or(VerityError::NoBlock { block: number })?;
        Ok(block.try_into().unwrap())
    };
    read(count, &mut fetch)
}

/// The data of a volume without its hash tree.
fn volume(tree: &Tree) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let (sealed, _) = write(tree, &path);
    let mut bytes = fs::read(path).unwrap();
    bytes.truncate(sealed.verity.data_blocks as usize * BLOCK_BYTES);
    bytes
}

#[test]
fn what_was_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let (sealed, entries) = write(&tree(), &path);
    let mut volume = VerityReader::open(&path, sealed.verity.clone()).unwrap();
    let layout = read(sealed.verity.data_blocks, &mut |number| volume.block(number)).unwrap();
    let mut found: Vec<_> = layout.inodes.iter().map(|inode| inode.path.as_str()).collect();
    found.sort_unstable();
    let written: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(found, written);
    for inode in layout.inodes.iter().filter(|inode| inode.file.is_some()) {
        let entry = entries.iter().find(|entry| entry.path == inode.path).unwrap();
        let mut content = Vec::new();
        for block in 0..inode.bytes.div_ceil(BLOCK_BYTES as u64) {
            content.extend(volume.block(inode.start_block + block).unwrap());
        }
        content.truncate(inode.bytes as usize);
        assert_eq!(
            (inode.mode, inode.bytes),
            (entry.mode, entry.bytes),
            "{}",
            entry.path
        );
        assert_eq!(Digest32::of(&content), entry.sha256, "{}", entry.path);
    }
}

/// All that a reader is shown.
fn listing(layout: &Layout) -> Vec<(&str, u32, u64)> {
    let inodes = layout.inodes.iter();
    inodes
        .map(|inode| (inode.path.as_str(), inode.mode, inode.bytes))
        .collect()
}

/// Whatever byte of superblock, inodes and directories is changed, either the listing says so or nothing is read: no
/// owner, link, attribute or second name can hide behind a root hash that somebody else computed.
#[test]
fn no_byte_of_the_metadata_can_be_another() {
    let mut small = Tree::default();
    for path in ["/a", "/dir/b"] {
        small
            .add_file(path, 0o644, Content::Bytes(b"content".to_vec()))
            .unwrap();
    }
    small.add_directory("/empty").unwrap();
    let honest = volume(&small);
    let metadata = honest.len() - 2 * BLOCK_BYTES;
    let shown = read_bytes(&honest).unwrap();
    // The unused parts of blocks alike, only not each of their bytes.
    let used = |at: &usize| {
        honest[at.saturating_sub(64)..(at + 64).min(metadata)]
            .iter()
            .any(|byte| *byte != 0)
    };
    for at in (0..metadata).filter(|at| used(at) || at % 97 == 0) {
        for bit in [0, 3, 7] {
            let mut changed = honest.clone();
            changed[at] ^= 1 << bit;
            let read = read_bytes(&changed);
            let overlooked = read.is_ok_and(|layout| listing(&layout) == listing(&shown));
            assert!(!overlooked, "byte {at}, bit {bit}");
        }
    }
    assert!(read_bytes(&honest[..metadata]).is_err(), "files cut off");
    assert!(
        read_bytes(&[&honest[..], &[0; BLOCK_BYTES]].concat()).is_err(),
        "a hidden block"
    );
}

/// Each is bounded before anything is done that grows with it.
#[test]
fn absurd_numbers_of_entries_and_lengths_of_paths_are_refused() {
    let mut tree = Tree::default();
    tree.add_directory("/a").unwrap();
    let honest = volume(&tree);
    for entries in [0, 65_537, u64::MAX] {
        let mut changed = honest.clone();
        changed[layout::SUPERBLOCK_OFFSET + 16..][..8].copy_from_slice(&entries.to_le_bytes());
        let error = read_bytes(&changed).unwrap_err().to_string();
        assert!(error.contains("names no entry or more than 65,536"), "{error}");
    }
    let longest = format!("/{}", vec!["d".repeat(127); 8].join("/"));
    assert_eq!(longest.len(), 1024);
    for (path, is_read) in [(longest.clone(), true), (longest + "d", false)] {
        let mut tree = Tree::default();
        tree.add_directory(&path).unwrap();
        let read = read_bytes(&volume(&tree));
        assert_eq!(read.is_ok(), is_read, "{} bytes", path.len());
        let problem = read.err().map_or(String::new(), |error| error.to_string());
        assert!(is_read || problem.contains("more than 1,024 bytes"), "{problem}");
    }
}

#[test]
fn directories_in_a_circle_and_endless_ones_are_refused() {
    let mut tree = Tree::default();
    tree.add_directory("/a/b").unwrap();
    let honest = volume(&tree);
    // Inodes 0, 1, 2 are /, /a and /a/b; each has one block of entries, behind the block of inodes.
    let entry_b = 3 * BLOCK_BYTES + 2 * layout::DIRENT_BYTES;
    let nid = |number: u64| u64::from(layout::ROOT_NID) + number * layout::NIDS_PER_INODE;
    assert_eq!(honest[entry_b..][..8], nid(2).to_le_bytes());
    for (target, problem) in [
        (0, "has a second name"),
        (1, "has a second name"),
        (3, "has no inode"),
    ] {
        let mut changed = honest.clone();
        changed[entry_b..][..8].copy_from_slice(&nid(target).to_le_bytes());
        let error = read_bytes(&changed).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
    let inode = BLOCK_BYTES + layout::INODE_BYTES;
    for bytes in [u64::MAX, 3 * BLOCK_BYTES as u64] {
        let mut changed = honest.clone();
        changed[inode + 8..][..8].copy_from_slice(&bytes.to_le_bytes());
        let error = read_bytes(&changed).unwrap_err().to_string();
        assert!(error.contains("lies outside the volume"), "{error}");
    }
}

/// Sixty thousand directories of some gigabytes each, all in the same blocks, would be read for years.
#[test]
fn directories_that_share_their_blocks_are_refused() {
    let mut tree = Tree::default();
    for path in ["/a", "/b", "/c", "/d"] {
        tree.add_directory(path).unwrap();
    }
    let mut changed = volume(&tree);
    // Behind superblock, inodes and the entries of / come the blocks of the four.
    let (first, bytes) = (3_u32, 4 * BLOCK_BYTES as u64);
    for inode in 1..=4 {
        let at = BLOCK_BYTES + inode * layout::INODE_BYTES;
        changed[at + 8..][..8].copy_from_slice(&bytes.to_le_bytes());
        changed[at + 16..][..4].copy_from_slice(&first.to_le_bytes());
    }
    let error = read_bytes(&changed).unwrap_err().to_string();
    assert!(error.contains("where another directory has them"), "{error}");
}

#[test]
fn set_user_id_and_devices_are_refused() {
    let mut tree = Tree::default();
    tree.add_file("/su", 0o755, Content::Bytes(vec![])).unwrap();
    let honest = volume(&tree);
    let mode = BLOCK_BYTES + layout::INODE_BYTES + 4;
    assert_eq!(honest[mode..][..2], 0o100_755_u16.to_le_bytes());
    for bad in [0o104_755_u16, 0o102_755, 0o060_660, 0o120_777, 0o041_777] {
        let mut changed = honest.clone();
        changed[mode..][..2].copy_from_slice(&bad.to_le_bytes());
        let error = read_bytes(&changed).unwrap_err().to_string();
        assert!(
            error.contains("neither a directory with mode 0755 nor a plain file"),
            "{error}"
        );
    }
}

#[test]
fn random_damage_is_no_panic_and_never_overlooked() {
    let mut volume = volume(&tree());
    let layout = read_bytes(&volume).unwrap();
    let files = layout.inodes.iter().filter(|inode| inode.file.is_some());
    let metadata = files.map(|file| file.start_block).min().unwrap() as usize * BLOCK_BYTES;
    let mut state = 1_u64;
    for _ in 0..2000 {
        let mut damage = Vec::new();
        for _ in 0..4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            damage.push(((state >> 33) as usize % metadata, (state >> 20) as u8 | 1));
        }
        damage.dedup_by_key(|(at, _)| *at);
        let flip = |volume: &mut Vec<u8>| damage.iter().for_each(|(at, bits)| volume[*at] ^= bits);
        flip(&mut volume);
        let overlooked = read_bytes(&volume).is_ok_and(|found| listing(&found) == listing(&layout));
        assert!(!overlooked, "{damage:?}");
        flip(&mut volume);
    }
}
