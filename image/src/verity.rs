//! Writes a volume and its dm-verity tree in one pass.
//!
//! Format 1, SHA-256, data and hash blocks of 4096 bytes, no superblock (kernel documentation,
//! admin-guide/device-mapper/verity.rst). The tree lies directly behind the data, top level first. As the
//! number of data blocks is known beforehand, so is the place of every hash block: nothing is kept in memory
//! but one block for each level.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt as _,
};

use cocoon_evidence::Digest32;
use cocoon_measurements::VerityTree;
use sha2::{Digest as _, Sha256};

/// Bytes in a data or hash block.
pub const BLOCK_BYTES: usize = 4096;

const DIGEST_BYTES: usize = 32;
const DIGESTS_PER_BLOCK: u64 = (BLOCK_BYTES / DIGEST_BYTES) as u64;

/// A finished volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// What the kernel is told.
    pub verity: VerityTree,
    /// Length of data and tree.
    pub bytes: u64,
    /// Of data and tree.
    pub sha256: Digest32,
}

/// Takes exactly the announced data and writes it with its tree.
#[derive(Debug)]
pub struct VerityWriter {
    file: File,
    data_blocks: u64,
    salt: Digest32,
    /// Hash of a block that starts with the salt: cloned for every block.
    salted: Sha256,
    whole: Sha256,
    block: Vec<u8>,
    blocks_written: u64,
    /// From the leaves up; empty when there is a single data block, whose digest is then the root hash.
    levels: Vec<Level>,
    root_hash: Option<Digest32>,
}

/// The hash blocks of one level: the open one, and where it goes.
#[derive(Debug)]
struct Level {
    digests: Vec<u8>,
    position: u64,
    /// Digests still to come.
    missing: u64,
}

impl VerityWriter {
    /// Starts a volume of `data_blocks` blocks in an empty file.
    pub fn new(file: File, data_blocks: u64, salt: Digest32) -> Self {
        Self {
            file,
            data_blocks,
            salt,
            salted: Sha256::new_with_prefix(salt.as_bytes()),
            whole: Sha256::new(),
            block: Vec::with_capacity(BLOCK_BYTES),
            blocks_written: 0,
            levels: levels(data_blocks),
            root_hash: None,
        }
    }

    /// Fills the open block with zeros.
    ///
    /// # Errors
    /// The disk's.
    pub fn pad(&mut self) -> io::Result<()> {
        let missing = (BLOCK_BYTES - self.block.len()) % BLOCK_BYTES;
        self.write_all(&[0; BLOCK_BYTES][..missing])
    }

    /// Writes what is left and makes it durable.
    ///
    /// # Errors
    /// The disk's, or fewer data were written than announced.
    pub fn finish(mut self) -> io::Result<Sealed> {
        self.pad()?;
        let root_hash = self.root_hash.ok_or_else(|| {
            let (written, expected) = (self.blocks_written, self.data_blocks);
            io::Error::other(format!("{written} of {expected} data blocks were written"))
        })?;
        let end = self.file.metadata()?.len();
        let mut position = self.data_blocks * BLOCK_BYTES as u64;
        let mut block = [0; BLOCK_BYTES];
        while position < end {
            self.file.read_exact_at(&mut block, position)?;
            self.whole.update(block);
            position += BLOCK_BYTES as u64;
        }
        self.file.sync_all()?;
        Ok(Sealed {
            verity: VerityTree {
                data_blocks: self.data_blocks,
                salt: self.salt,
                root_hash,
            },
            bytes: end,
            sha256: Digest32(self.whole.finalize().into()),
        })
    }

    fn data_block(&mut self) -> io::Result<()> {
        if self.blocks_written == self.data_blocks {
            return Err(io::Error::other("more data than the volume was announced with"));
        }
        let offset = self.blocks_written * BLOCK_BYTES as u64;
        self.file.write_all_at(&self.block, offset)?;
        self.whole.update(&self.block);
        let mut digest = self.digest(&self.block);
        self.block.clear();
        self.blocks_written += 1;

        // The digest of a hash block that is full, or the last of its level, goes one level up.
        for index in 0..self.levels.len() {
            let level = &mut self.levels[index];
            level.digests.extend_from_slice(digest.as_bytes());
            level.missing -= 1;
            if level.missing > 0 && level.digests.len() < BLOCK_BYTES {
                return Ok(());
            }
            level.digests.resize(BLOCK_BYTES, 0);
            let (full, position) = (std::mem::take(&mut level.digests), level.position);
            level.position += 1;
            self.file.write_all_at(&full, position * BLOCK_BYTES as u64)?;
            digest = self.digest(&full);
        }
        if self.blocks_written == self.data_blocks {
            self.root_hash = Some(digest);
        }
        Ok(())
    }

    fn digest(&self, block: &[u8]) -> Digest32 {
        Digest32(self.salted.clone().chain_update(block).finalize().into())
    }
}

impl Write for VerityWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK_BYTES {
            self.data_block()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many hash blocks each level has, from the leaves up.
fn level_blocks(data_blocks: u64) -> Vec<u64> {
    let mut blocks = Vec::new();
    let mut below = data_blocks;
    while below > 1 {
        below = below.div_ceil(DIGESTS_PER_BLOCK);
        blocks.push(below);
    }
    blocks
}

/// Blocks of the whole tree.
pub fn tree_blocks(data_blocks: u64) -> u64 {
    level_blocks(data_blocks).iter().sum()
}

fn levels(data_blocks: u64) -> Vec<Level> {
    let mut end = data_blocks + tree_blocks(data_blocks);
    let mut below = data_blocks;
    let mut levels = Vec::new();
    for blocks in level_blocks(data_blocks) {
        end -= blocks;
        levels.push(Level {
            digests: Vec::new(),
            position: end,
            missing: below,
        });
        below = blocks;
    }
    levels
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn data(blocks: u64) -> Vec<u8> {
        (0..blocks * BLOCK_BYTES as u64)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    }

    fn seal(path: &std::path::Path, blocks: u64, salt: Digest32) -> Sealed {
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
        // One block, one level, the edges of a full hash block, two levels, three levels.
        for blocks in [1, 2, 127, 128, 129, 300, 128 * 128, 128 * 128 + 1] {
            let ours = dir.path().join(format!("ours-{blocks}"));
            let sealed = seal(&ours, blocks, salt);
            let bytes = std::fs::read(&ours).unwrap();
            assert_eq!(sealed.bytes, bytes.len() as u64);
            assert_eq!(sealed.sha256, Digest32::of(&bytes));
            assert_eq!(sealed.bytes, (blocks + tree_blocks(blocks)) * BLOCK_BYTES as u64);

            let theirs = dir.path().join(format!("theirs-{blocks}"));
            std::fs::write(&theirs, data(blocks)).unwrap();
            let Some(root_hash) = veritysetup(&theirs, blocks, salt) else {
                eprintln!("SKIP: veritysetup (Debian: cryptsetup-bin) is not installed");
                return;
            };
            assert_eq!(sealed.verity.root_hash, root_hash, "{blocks} blocks");
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
            sealed.verity.root_hash.to_string(),
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
}
