//! Reads QEMU's fw_cfg device the way firmware does, through its DMA interface, or byte by byte where a QEMU
//! has none. Layout: QEMU, `docs/specs/fw_cfg.rst`.

use super::{
    GenerateError,
    qtest::{Qtest, READ_BYTES_MAX, Width},
};
use crate::FW_CFG_ITEM_BYTES_MAX;

const SELECTOR_PORT: u16 = 0x510;
const DATA_PORT: u16 = 0x511;
const DMA_PORT_HIGH: u16 = 0x514;
const DMA_PORT_LOW: u16 = 0x518;

const KEY_SIGNATURE: u16 = 0x00;
const KEY_ID: u16 = 0x01;
/// FW_CFG_BOOT_MENU, an item without a file name.
pub(super) const KEY_BOOT_MENU: u16 = 0x0e;
const KEY_DIRECTORY: u16 = 0x19;

const ID_HAS_DMA: u32 = 1 << 1;

/// Scratch memory below 2 MiB: nothing else uses it, as no firmware runs.
const DMA_CONTROL_AT: u64 = 0x1000;
const DMA_DATA_AT: u64 = 0x10_0000;

const DMA_READ: u32 = 1 << 1;
const DMA_SELECT: u32 = 1 << 3;

/// A q35 machine has about 30 files.
const FILES_MAX: u32 = 256;
const ENTRY_BYTES: usize = 64;

/// How the bytes come out of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMethod {
    /// In blocks. All QEMUs from 2.4 on have it.
    Dma,
    /// A port access for each byte: some thousand times slower, and an independent way to the same bytes.
    Bytes,
}

/// The device.
pub(super) struct FwCfg<'a> {
    qtest: &'a mut Qtest,
    method: ReadMethod,
}

/// A file of the directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) key: u16,
    pub(super) bytes: usize,
}

impl<'a> FwCfg<'a> {
    /// Checks that the device is there, and takes DMA only if it has it.
    pub(super) fn open(qtest: &'a mut Qtest, asked: ReadMethod) -> Result<Self, GenerateError> {
        let mut device = Self {
            qtest,
            method: ReadMethod::Bytes,
        };
        if device.read(KEY_SIGNATURE, 4)? != b"QEMU" {
            return Err(GenerateError::FwCfg("it has no signature"));
        }
        let id = device.read(KEY_ID, 4)?;
        let has_dma = id.first().is_some_and(|byte| u32::from(*byte) & ID_HAS_DMA != 0);
        if has_dma {
            device.method = asked;
        }
        Ok(device)
    }

    /// The first `length` bytes of an item.
    pub(super) fn read(&mut self, key: u16, length: usize) -> Result<Vec<u8>, GenerateError> {
        if length > FW_CFG_ITEM_BYTES_MAX {
            return Err(GenerateError::FwCfg("an item is longer than 16 MiB"));
        }
        match self.method {
            ReadMethod::Dma => self.read_dma(key, length),
            ReadMethod::Bytes => self.read_bytes(key, length),
        }
    }

    fn read_bytes(&mut self, key: u16, length: usize) -> Result<Vec<u8>, GenerateError> {
        self.qtest.out(Width::Word, SELECTOR_PORT, u32::from(key))?;
        (0..length)
            .map(|_| {
                let byte = self.qtest.input(Width::Byte, DATA_PORT)?;
                u8::try_from(byte).map_err(|_| GenerateError::FwCfg("a byte is longer than a byte"))
            })
            .collect()
    }

    fn read_dma(&mut self, key: u16, length: usize) -> Result<Vec<u8>, GenerateError> {
        let mut bytes = Vec::with_capacity(length);
        let mut select = u32::from(key) << 16 | DMA_SELECT;
        while bytes.len() < length {
            let block = (length - bytes.len()).min(READ_BYTES_MAX);
            self.transfer(select | DMA_READ, block)?;
            bytes.extend(self.qtest.read(DMA_DATA_AT, block)?);
            // The next block goes on where this one ended.
            select = 0;
        }
        Ok(bytes)
    }

    /// FWCfgDmaAccess {control u32, length u32, address u64}, big endian; writing the lower half of its address
    /// starts the transfer, and QEMU clears the control word when it succeeded.
    fn transfer(&mut self, control: u32, length: usize) -> Result<(), GenerateError> {
        let length = u32::try_from(length).expect("a block has at most READ_BYTES_MAX bytes");
        let access = [
            control.to_be_bytes().as_slice(),
            &length.to_be_bytes(),
            &DMA_DATA_AT.to_be_bytes(),
        ]
        .concat();
        self.qtest.write(DMA_CONTROL_AT, &access)?;
        self.qtest.out(Width::Long, DMA_PORT_HIGH, 0)?;
        let at = u32::try_from(DMA_CONTROL_AT).expect("it lies below 2 MiB");
        self.qtest.out(Width::Long, DMA_PORT_LOW, at.swap_bytes())?;
        if self.qtest.read(DMA_CONTROL_AT, 4)? != [0; 4] {
            return Err(GenerateError::FwCfg("a DMA transfer failed"));
        }
        Ok(())
    }

    /// {count u32, count × {bytes u32, key u16, reserved u16, name [56]}}, big endian.
    pub(super) fn directory(&mut self) -> Result<Vec<Entry>, GenerateError> {
        let head = self.read(KEY_DIRECTORY, 4)?;
        let count = head
            .first_chunk()
            .map(|count| u32::from_be_bytes(*count))
            .filter(|count| *count <= FILES_MAX)
            .ok_or(GenerateError::FwCfg("it lists more than 256 files"))?;
        let bytes = self.read(KEY_DIRECTORY, 4 + count as usize * ENTRY_BYTES)?;
        bytes[4..].chunks_exact(ENTRY_BYTES).map(entry).collect()
    }
}

fn entry(bytes: &[u8]) -> Result<Entry, GenerateError> {
    let damaged = GenerateError::FwCfg("an entry of its directory is damaged");
    let parsed = (|| {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_first_chunk::<2>()?;
        let name = rest.get(2..)?.split(|byte| *byte == 0).next()?;
        Some(Entry {
            name: String::from_utf8(name.to_vec()).ok()?,
            key: u16::from_be_bytes(*key),
            bytes: usize::try_from(u32::from_be_bytes(*length)).ok()?,
        })
    })();
    parsed.ok_or(damaged)
}
