//! Pixels compared with Pillow's hashes, the two inverse DCTs compared with each other, and damaged
//! files.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::idct::{Idct, Portable, WithIdct, with_fastest};
use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/jpeg")
}

fn read(bytes: &[u8]) -> Result<Picture> {
    decode(bytes, |_, _| Ok(()), u64::MAX)
}

/// Incorrect lines of a folder's golden.txt.
fn wrong(folder: &Path) -> (usize, Vec<String>) {
    let golden = std::fs::read_to_string(folder.join("golden.txt")).unwrap();
    let wrong = golden.lines().filter_map(|line| {
        let [digest, size, name] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let found = match read(&std::fs::read(folder.join(name)).unwrap()) {
            Ok(picture) => {
                let digest = Sha256::digest(&picture.rgb);
                let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{digest} {}x{}", picture.width, picture.height)
            }
            Err(Refusal::Unsupported(_)) => "refused -".to_string(),
            Err(refusal) => format!("{refusal:?}"),
        };
        (found != format!("{digest} {size}")).then(|| format!("{name}: {found}"))
    });
    (golden.lines().count(), wrong.collect())
}

#[test]
fn every_kind_has_the_pixels_of_libjpeg_turbo() {
    let (files, wrong) = wrong(&folder());
    assert!(files >= 120 && wrong.is_empty(), "{wrong:#?}");
}

#[test]
#[ignore = "needs RDPM_JPEG_CORPUS, a folder made by scripts/jpeg_corpus.py"]
fn jpeg_corpus() {
    let corpus = std::env::var("RDPM_JPEG_CORPUS").expect("RDPM_JPEG_CORPUS names the folder");
    let (files, wrong) = wrong(Path::new(&corpus));
    assert!(files > 0 && wrong.is_empty(), "{files} files, {wrong:#?}");
    println!("{files} files as libjpeg-turbo reads them");
}

/// A random generator for test data only.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n.max(1)
    }
}

#[test]
fn vectors_and_plain_code_give_the_same_samples() {
    struct Compare;
    impl WithIdct for Compare {
        type Output = ();
        fn run(self, idct: impl Idct) {
            let mut random = Random(1);
            for round in 0..20_000 {
                // Few and many coefficients, small and overflowing ones.
                let (count, largest) = (random.below(65), 1 << (round % 16));
                let (mut block, mut steps) = ([0; 64], [0; 64]);
                for _ in 0..count {
                    let place = random.below(if round % 3 == 0 { 8 } else { 64 });
                    block[place] = (random.below(2 * largest) as i32 - largest as i32) as i16;
                }
                steps.fill_with(|| random.below(if round % 5 == 0 { 65536 } else { 60 }) as i16);
                let (a, b) = (idct.block(&block, &steps), Portable.block(&block, &steps));
                assert_eq!(a, b, "{block:?} {steps:?}");
            }
        }
    }
    with_fastest(Compare);
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    for name in [
        "baseline-37x29-2x2",
        "progressive-37x29-2x2",
        "arithmetic-37x29-2x1",
        "lossless-5-37x29",
        "arithmetic-progressive-37x29-2x2",
        "restart-3B-37x29",
        "separate-37x29-2x2",
    ] {
        let file = std::fs::read(folder().join(format!("{name}.jpg"))).unwrap();
        for length in 0..file.len() {
            match read(&file[..length]) {
                Err(Refusal::Damaged(_)) => {}
                other => panic!("{name}, {length} bytes: {other:?}"),
            }
        }
        assert!(read(&file).is_ok());
    }
}

/// Also if an end marker hides it.
#[test]
fn a_scan_cut_short_is_an_error() {
    for name in ["baseline-37x29-2x2", "restart-3B-37x29", "lossless-5-37x29"] {
        let file = std::fs::read(folder().join(format!("{name}.jpg"))).unwrap();
        let scan = file
            .windows(2)
            .rposition(|two| two == [0xFF, 0xDA])
            .unwrap();
        for length in scan + 20..file.len() - 6 {
            let cut = [&file[..length], &[0xFF, 0xD9]].concat();
            match read(&cut) {
                Err(Refusal::Damaged(what)) => {
                    assert!(!what.contains("second"), "{name}, {length}: {what}");
                }
                other => panic!("{name}, {length} bytes: {other:?}"),
            }
        }
    }
}

#[test]
fn stray_bytes_are_counted() {
    for (name, expected) in [
        ("stray-zeros-before-table-37x29", 3),
        ("stray-bytes-before-frame-37x29", 4),
        ("fill-bytes-before-table-37x29", 0),
        ("stray-text-after-end-37x29", 0),
        ("baseline-37x29-2x2", 0),
    ] {
        let file = std::fs::read(folder().join(format!("{name}.jpg"))).unwrap();
        assert_eq!(read(&file).unwrap().stray, expected, "{name}");
    }
}

#[test]
fn a_size_may_be_refused_before_anything_is_allocated() {
    let mut file = std::fs::read(folder().join("progressive-37x29-2x2.jpg")).unwrap();
    let frame = file.windows(2).position(|two| two == [0xFF, 0xC2]).unwrap();
    file[frame + 5..frame + 9].fill(0xFF);
    let refused = decode(&file, |width, height| Err(format!("{width} {height}")), 1);
    assert_eq!(
        refused.unwrap_err(),
        Refusal::TooLarge("65535 65535".to_string())
    );
}

/// A small file must not keep its reader busy for long.
#[test]
fn endless_scans_are_refused() {
    let file = std::fs::read(folder().join("progressive-37x29-2x2.jpg")).unwrap();
    let last = file
        .windows(2)
        .rposition(|two| two == [0xFF, 0xDA])
        .unwrap();
    let mut head = file[..last].to_vec();
    let frame = head.windows(2).position(|two| two == [0xFF, 0xC2]).unwrap();
    head[frame + 5..frame + 9].copy_from_slice(&[0x20, 0, 0x20, 0]);
    // One scan of a luma band in which all blocks have ended: runs of up to 2¹⁵ blocks.
    let started = Instant::now();
    match read(&head) {
        Err(Refusal::Damaged(_)) => {}
        other => panic!("{:?}", other.map(|picture| picture.rgb.len())),
    }
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// A gray image of one block, whose AC scan comes again and again.
#[test]
fn more_scans_than_are_allowed_are_refused() {
    let segment = |marker: u8, body: &[u8]| {
        let size = (body.len() as u16 + 2).to_be_bytes();
        [&[0xFF, marker], &size[..], body].concat()
    };
    // One code of one bit, for the symbol 0.
    let table = |class: u8| segment(0xC4, &[&[class << 4, 1], &[0; 16][..]].concat());
    let scan = |band: [u8; 3]| {
        let head = segment(0xDA, &[&[1, 1, 0], &band[..]].concat());
        [&head[..], &[0x7F]].concat()
    };
    let file = |repeated: usize| {
        let parts = [
            vec![0xFF, 0xD8],
            segment(0xDB, &[&[0], &[1; 64][..]].concat()),
            segment(0xC2, &[8, 0, 8, 0, 8, 1, 1, 0x11, 0]),
            table(0),
            table(1),
            scan([0, 0, 0]),
            scan([1, 63, 0]).repeat(repeated),
            vec![0xFF, 0xD9],
        ];
        parts.concat()
    };
    let read = |repeated, scans| decode(&file(repeated), |_, _| Ok(()), scans);
    assert!(read(3, 4).is_ok(), "{:?}", read(3, 4));
    assert!(read(4, u64::MAX).is_ok());
    match read(4, 4) {
        Err(Refusal::Damaged(what)) => assert!(what.contains("so many scans"), "{what}"),
        other => panic!("{other:?}"),
    }
}

/// A million gray blocks that end in a few codes of each scan, in some 140 KB.
#[test]
fn a_small_file_does_not_keep_its_reader_busy_by_its_scans() {
    let segment = |marker: u8, body: &[u8]| {
        let size = (body.len() as u16 + 2).to_be_bytes();
        [&[0xFF, marker], &size[..], body].concat()
    };
    let table = |class: u8, symbol: u8| {
        segment(0xC4, &[&[class << 4, 1], &[0; 15][..], &[symbol]].concat())
    };
    let scan = |band: [u8; 3], bytes: usize| {
        let head = segment(0xDA, &[&[1, 1, 0], &band[..]].concat());
        [head, vec![0; bytes]].concat()
    };
    let [high, low] = 8000u16.to_be_bytes();
    let file = [
        vec![0xFF, 0xD8],
        segment(0xDB, &[&[0], &[1; 64][..]].concat()),
        segment(0xC2, &[8, high, low, high, low, 1, 1, 0x11, 0]),
        table(0, 0),
        // A run of 16,384 blocks and as many more as the next 14 bits say: none.
        table(1, 0xE0),
        scan([0, 0, 0], 125_000),
        scan([1, 63, 0], 117).repeat(70),
        vec![0xFF, 0xD9],
    ];
    match read(&file.concat()) {
        Err(Refusal::Damaged(what)) => assert!(what.contains("so many scans"), "{what}"),
        other => panic!("{:?}", other.map(|picture| picture.rgb.len())),
    }
}

/// Changes, cuts and joins files until the time is over: no panic, nothing slow, little memory.
#[test]
#[ignore = "runs for RDPM_FUZZ_SECONDS"]
fn damaged_files_do_no_harm() {
    const LARGEST: u64 = 1 << 22;
    let seconds: u64 = std::env::var("RDPM_FUZZ_SECONDS").unwrap().parse().unwrap();
    let seed = std::env::var("RDPM_FUZZ_SEED").map_or(7, |seed| seed.parse().unwrap());
    let files = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "jpg"));
    let mut files: Vec<_> = files.collect();
    files.sort();
    let files: Vec<_> = files
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let mut random = Random(seed);
    let (started, mut slowest) = (Instant::now(), Duration::ZERO);
    let (mut runs, mut read_whole) = (0_u64, 0_u64);
    while started.elapsed() < Duration::from_secs(seconds) {
        let mut file = files[random.below(files.len())].clone();
        for _ in 0..=random.below(6) {
            mutate(&mut file, &files, &mut random);
        }
        let begun = Instant::now();
        let fits = |width: u32, height: u32| match u64::from(width) * u64::from(height) > LARGEST {
            true => Err("too large".to_string()),
            false => Ok(()),
        };
        let outcome = std::panic::catch_unwind(|| decode(&file, fits, u64::MAX).is_ok());
        slowest = slowest.max(begun.elapsed());
        match outcome {
            Ok(whole) => read_whole += u64::from(whole),
            Err(_) => {
                let at = std::env::temp_dir().join("jpeg-that-panics.jpg");
                std::fs::write(&at, &file).unwrap();
                panic!("it panicked: {}", at.display());
            }
        }
        runs += 1;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or_default();
    println!("{runs} files, {read_whole} of them read; slowest {slowest:?}; {peak}");
    assert!(slowest < Duration::from_secs(20), "{slowest:?}");
}

fn mutate(file: &mut Vec<u8>, files: &[Vec<u8>], random: &mut Random) {
    if file.len() < 4 {
        return;
    }
    let at = 2 + random.below(file.len() - 2);
    match random.below(8) {
        0 => file[at] = random.next() as u8,
        1 => file[at] ^= 1 << random.below(8),
        2 => file.truncate(at),
        3 => {
            let end = (at + random.below(40)).min(file.len());
            file.drain(at..end);
        }
        4 => {
            let marker = [0xFF, 0xC0 + random.below(64) as u8];
            file.splice(at..at, marker);
        }
        5 => {
            let other = &files[random.below(files.len())];
            let from = random.below(other.len());
            let to = (from + random.below(300)).min(other.len());
            file.splice(at..at, other[from..to].iter().copied());
        }
        6 => {
            // A byte of a segment's header.
            let marks: Vec<usize> = (0..file.len() - 1)
                .filter(|&i| file[i] == 0xFF && file[i + 1] >= 0xC0)
                .collect();
            if !marks.is_empty() {
                let at =
                    (marks[random.below(marks.len())] + 1 + random.below(20)).min(file.len() - 1);
                file[at] = random.next() as u8;
            }
        }
        _ => {
            let end = (at + random.below(200)).min(file.len());
            let again = file[at..end].to_vec();
            file.splice(at..at, again);
        }
    }
}
