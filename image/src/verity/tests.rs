use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    process::Command,
};

use cocoon_evidence::Digest32;

use super::*;

fn data(blocks: u64) -> Vec<u8> {
    (0..blocks * BLOCK_BYTES as u64)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn seal(path: &std::path::Path, blocks: u64, salt: Digest32) -> VerityTree {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    let mut writer = VerityWriter::new(file, blocks, salt);
    writer.write_all(&data(blocks)).unwrap();
    writer.finish().unwrap()
}

#[test]
fn tree_and_root_hash_are_those_of_veritysetup() {
    let salt = Digest32::of(b"salt");
    let dir = tempfile::tempdir().unwrap();
    // One block, one level, the edges of a full hash block and of what one thread hashes, two levels, three levels.
    for blocks in [1, 2, 127, 128, 129, 300, 1024, 1025, 128 * 128, 128 * 128 + 1] {
        let ours = dir.path().join(format!("ours-{blocks}"));
        let sealed = seal(&ours, blocks, salt);
        let bytes = std::fs::read(&ours).unwrap();
        assert_eq!(volume_bytes(blocks), bytes.len() as u64);

        let theirs = dir.path().join(format!("theirs-{blocks}"));
        std::fs::write(&theirs, data(blocks)).unwrap();
        let Some(root_hash) = veritysetup(&theirs, blocks, salt) else {
            eprintln!("SKIP: veritysetup (Debian: cryptsetup-bin) is not installed");
            return;
        };
        assert_eq!(sealed.root_hash, root_hash, "{blocks} blocks");
        assert!(std::fs::read(&theirs).unwrap() == bytes, "{blocks} blocks");
    }
}

fn veritysetup(path: &std::path::Path, blocks: u64, salt: Digest32) -> Option<Digest32> {
    let program = ["/usr/sbin/veritysetup", "/sbin/veritysetup"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())?;
    let output = Command::new(program)
        .args(["format", "--no-superblock", "--data-block-size=4096"])
        .arg("--hash-block-size=4096")
        .arg(format!("--salt={salt}"))
        .arg(format!("--data-blocks={blocks}"))
        .arg(format!("--hash-offset={}", blocks * BLOCK_BYTES as u64))
        .args([path, path])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("Root hash:"))?;
    Some(line.split_whitespace().last()?.parse().unwrap())
}

// Computed with a few lines of Python's hashlib and equal to what veritysetup 2.6.1 says; holds where veritysetup is not installed.
#[test]
fn known_vector() {
    let dir = tempfile::tempdir().unwrap();
    let sealed = seal(&dir.path().join("volume"), 300, Digest32::of(b"salt"));
    assert_eq!(
        sealed.root_hash.to_string(),
        "01aaf854347481a7c5ab35379977c0e438954cbbccf9cbc02c77f083d49b9cf1"
    );
}

#[test]
fn too_few_and_too_many_data_are_refused() {
    let mut writer = VerityWriter::new(tempfile::tempfile().unwrap(), 2, Digest32::ZERO);
    writer.write_all(&data(1)).unwrap();
    let error = writer.finish().unwrap_err();
    assert_eq!(error.to_string(), "1 of 2 data blocks were written");

    let mut writer = VerityWriter::new(tempfile::tempfile().unwrap(), 1, Digest32::ZERO);
    assert!(writer.write_all(&data(2)).is_err());
}

#[test]
fn a_full_disk_is_an_error() {
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let mut writer = VerityWriter::new(full, 1, Digest32::ZERO);
    let error = writer.write_all(&data(1)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

/// Every bit of data, tree and salt decides: an auditor must not be shown content that a guest would refuse.
#[test]
fn a_flipped_bit_anywhere_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume");
    let blocks = 128 + 2;
    let sealed = seal(&path, blocks, Digest32::of(b"salt"));
    let read_all = || {
        let mut reader = VerityReader::open(&path, sealed.clone())?;
        let content = (0..blocks).map(|number| reader.block(number));
        content
            .collect::<Result<Vec<_>, _>>()
            .map(|blocks| blocks.concat())
    };
    assert!(read_all().unwrap() == data(blocks));
    let file = File::options().write(true).read(true).open(&path).unwrap();
    // A data block, the last one, each block of the tree: the top, both leaves, and the padding of the last.
    for (block, at, what) in [
        (0, 0, "data block 0"),
        (129, 4095, "data block 129"),
        (130, 0, "hash block 130"),
        (130, 4000, "hash block 130"),
        (131, 5, "hash block 131"),
        (132, 4095, "hash block 132"),
    ] {
        let offset = block * BLOCK_BYTES as u64 + at;
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
        let error = read_all().unwrap_err();
        assert_eq!(error.to_string(), format!("{what} does not match the root hash"));
        file.write_all_at(&byte, offset).unwrap();
    }
    let mut other = sealed.clone();
    other.salt = Digest32::of(b"pepper");
    let mut reader = VerityReader::open(&path, other).unwrap();
    assert!(matches!(reader.block(0), Err(VerityError::Mismatch { .. })));
}

#[test]
fn a_volume_of_another_length_or_of_absurd_parameters_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume");
    let sealed = seal(&path, 3, Digest32::ZERO);
    for data_blocks in [0, 1, 2, 4, u64::MAX, u64::MAX / 4096, 1 << 32] {
        let tree = VerityTree {
            data_blocks,
            ..sealed.clone()
        };
        assert!(VerityReader::open(&path, tree).is_err(), "{data_blocks}");
    }
    let mut reader = VerityReader::open(&path, sealed.clone()).unwrap();
    assert!(matches!(reader.block(3), Err(VerityError::NoBlock { block: 3 })));
    File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"more")
        .unwrap();
    let error = VerityReader::open(&path, sealed).unwrap_err();
    assert!(matches!(error, VerityError::Length { .. }), "{error}");
}
