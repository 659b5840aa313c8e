//! How much longer a volume takes to write than its files take to read.
//!
//! `cargo bench -p cocoon-image --bench pack` writes files as large as those of the root for the CPU, reads them,
//! hashes them, copies them to disk and packs them, in turns so that a busy machine slows all. It fails if packing a
//! root takes 2 s more than reading its files and getting as many bytes onto the disk, which is that of the target
//! folder.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use cocoon_image::erofs::{Content, Tree};
use sha2::{Digest as _, Sha256};

/// Lengths of libtorch's largest library, of the agent, the engine and the C libraries.
const FILES: [(&str, usize); 5] = [
    ("/lib/x86_64-linux-gnu/libtorch_cpu.so", 358_093_552),
    ("/init", 6_344_896),
    ("/usr/bin/cocoon-engine", 5_842_616),
    ("/lib/x86_64-linux-gnu/libstdc++.so.6", 2_190_440),
    ("/lib/x86_64-linux-gnu/libc.so.6", 1_926_232),
];
const EXTRA_MAX: Duration = Duration::from_secs(2);
const ROUNDS: u32 = 7;

fn main() -> ExitCode {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the files");
    let mut tree = Tree::default();
    let mut paths = Vec::new();
    for (number, (name, bytes)) in FILES.into_iter().enumerate() {
        let path = folder.path().join(number.to_string());
        fs::write(&path, content(number as u8, bytes)).expect("writing a file");
        let content = Content::of_file(&path).expect("it was just written");
        tree.add_file(name, 0o755, content)
            .expect("the names above are good");
        paths.push(path);
    }
    let out = folder.path().join("volume");

    let mut best = [Duration::MAX; 5];
    for _ in 0..ROUNDS {
        let times = [
            time(|| paths.iter().for_each(|path| read(path, |_| ()))),
            time(|| {
                let mut hash = Sha256::new();
                paths
                    .iter()
                    .for_each(|path| read(path, |bytes| hash.update(bytes)));
                std::hint::black_box(hash.finalize());
            }),
            time(|| copy(&paths, &out)),
            time(|| {
                tree.seal(volume(&out), "bench").expect("there is space");
            }),
            time(|| {
                tree.write(volume(&out), "bench").expect("there is space");
            }),
        ];
        best = std::array::from_fn(|row| best[row].min(times[row]));
    }
    let [reading, _, copying, _, root] = best;
    let bytes: usize = FILES.iter().map(|(_, bytes)| bytes).sum();
    println!(
        "{bytes} bytes in {} files, the shortest of {ROUNDS} turns",
        FILES.len()
    );
    let rows = [
        "reading",
        "reading, SHA-256",
        "copying to disk",
        "packing a model",
        "packing a root, each file hashed",
    ];
    for (name, time) in rows.into_iter().zip(best) {
        let ratio = time.as_secs_f64() / reading.as_secs_f64();
        println!("{name:<34} {:>8.3} s {ratio:>7.2}", time.as_secs_f64());
    }
    match root.saturating_sub(copying) <= EXTRA_MAX {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Into one file, until the disk has it.
fn copy(paths: &[PathBuf], out: &Path) {
    let out = volume(out);
    for path in paths {
        let mut file = File::open(path).expect("it was written");
        io::copy(&mut file, &mut &out).expect("there is space");
    }
    out.sync_all().expect("there is space");
}

fn volume(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    options.open(path).expect("a file for the volume")
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn read(path: &Path, mut take: impl FnMut(&[u8])) {
    let mut file = File::open(path).expect("it was written");
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).expect("it was written");
        if count == 0 {
            return;
        }
        take(&buffer[..count]);
    }
}

/// Nothing that a file system could compress or leave out.
fn content(seed: u8, bytes: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 32) as u32
    });
    let mut content: Vec<u8> = words
        .by_ref()
        .take(bytes.div_ceil(4))
        .flat_map(u32::to_le_bytes)
        .collect();
    content.truncate(bytes);
    content
}
