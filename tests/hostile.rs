//! What reads bytes that others made (`rdpm::hostile`) on the corpus of fuzzing, and on mutations
//! of it: it returns, whatever they are, within ten seconds and 1 GiB.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rdpm::hostile::{TARGETS, Target};

/// Mutations of each target's corpus; reading an image, a shard or a configuration takes a hundred
/// times as long as reading a frame.
fn mutations(name: &str) -> usize {
    match name {
        "image" => 4_000,
        "tar" | "state" => 8_000,
        _ => 20_000,
    }
}

/// Folders of files that are test data of their own.
fn folders(name: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data: &[&str] = match name {
        "image" => &["images", "jpeg"],
        "tar" => &["shards"],
        "pth" => &["weights"],
        _ => &[],
    };
    let data = data
        .iter()
        .map(|folder| root.join("tests/data").join(folder));
    let own = root.join("fuzz/corpus").join(name);
    data.chain([own]).filter(|folder| folder.is_dir()).collect()
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<PathBuf> = folders(name)
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("a folder"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).expect("a file");
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

/// SplitMix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Below `end`; 0 if there is nothing.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// One to eight changes, among them what lengths and offsets are damaged by, and parts of `other`.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], draws: &mut Draws) {
    for _ in 0..=draws.below(8) {
        let at = draws.below(bytes.len());
        let length = 1 + draws.below(32);
        let end = (at + length).min(bytes.len());
        match draws.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            3 => {
                let from = draws.below(other.len());
                let part = &other[from..(from + length).min(other.len())];
                bytes.splice(at..end, part.iter().copied());
            }
            4 => {
                let width = [1, 2, 4, 8][draws.below(4)];
                let extremes = [0, 1, u64::MAX, u64::MAX >> 1, 1 << 31, 1 << 62];
                let number = extremes[draws.below(6)].to_le_bytes();
                let end = (at + width).min(bytes.len());
                bytes.splice(at..end, number[..width].iter().copied());
            }
            5 => {
                let digits = draws.next().to_string();
                bytes.splice(at..end, digits.bytes().take(length));
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << draws.below(8);
                }
            }
        }
    }
}

/// Whether `read` accepts these bytes; a failure leaves them in a file and names it.
fn judged((name, read): Target, bytes: &[u8], origin: &Path) -> bool {
    let begin = Instant::now();
    let accepted = catch_unwind(AssertUnwindSafe(|| read(bytes)));
    let took = begin.elapsed();
    accepted
        .ok()
        .filter(|_| took < Duration::from_secs(10))
        .unwrap_or_else(|| {
            let kept = std::env::temp_dir().join(format!("rdpm-hostile-{name}"));
            fs::write(&kept, bytes).expect("written");
            panic!(
                "{name}: a panic, or {took:?}, at {}, made from {}",
                kept.display(),
                origin.display()
            )
        })
}

/// The most memory that this process has had, in MiB.
fn most_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|n| n.parse::<u64>().ok()).expect("kB") / 1024
}

#[test]
fn whatever_the_bytes_are_reading_them_ends() {
    // The panics of others' decoders are errors, and would be printed here.
    std::panic::set_hook(Box::new(|_| {}));
    let mut failed = Vec::new();
    for target in TARGETS {
        let (begin, name) = (Instant::now(), target.0);
        let ended = catch_unwind(|| {
            let (corpus, mut draws) = (corpus(name), Draws(7));
            let accepts = |(path, bytes): &&(PathBuf, Vec<u8>)| judged(target, bytes, path);
            let accepted = corpus.iter().filter(accepts).count();
            // Else the mutations are of something that is refused at its first byte.
            assert!(accepted > 0, "{name}: nothing of its corpus is accepted");
            for _ in 0..mutations(name) {
                let (path, bytes) = &corpus[draws.below(corpus.len())];
                let (_, other) = &corpus[draws.below(corpus.len())];
                let mut bytes = bytes.clone();
                mutate(&mut bytes, other, &mut draws);
                judged(target, &bytes, path);
            }
            (accepted, corpus.len())
        });
        match ended {
            Ok((accepted, all)) => eprintln!(
                "{name}: {accepted} of {all} accepted, {} mutations, {:.1} s, at most {} MiB",
                mutations(name),
                begin.elapsed().as_secs_f64(),
                most_memory()
            ),
            Err(panic) => failed.push(
                panic
                    .downcast::<String>()
                    .map_or_else(|_| format!("{name}: it panicked"), |text| *text),
            ),
        }
    }
    let _ = std::panic::take_hook();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(most_memory() < 1024, "{} MiB", most_memory());
}
