//! `eval-vae` and `encode` in several processes, and in the jobs of an array: the report and the
//! files of one process, to the bit; and commands that are one process.

use std::fs;
use std::process::{Command, Stdio};

use super::Place;
use super::processes::Ranks;
use super::ranks::{bytes, command, fails, run, start, told, until, with};

/// 24 images in five batches, of which the third has none that can be read.
fn place() -> Place {
    let place = Place::new().with_model();
    for i in [3, 10, 11, 12, 13, 14] {
        fs::write(place.path(&format!("a/{i:03}.png")), b"no picture").expect("written");
    }
    place
}

fn eval(json: &str, more: &str) -> String {
    let line = format!(
        "eval-vae a --model model.safetensors --metrics psnr,ssim --steps-curve \
         --skip-bad-images --json {json}"
    );
    with(&line, &[("--batch-size", 5)], more)
}

/// What is printed and what is written of all images.
fn whole(place: &Place) -> (String, Vec<u8>) {
    let table = run(place, 1, &eval("one.json", "-q"));
    let report = fs::read(place.path("one.json")).expect("a report");
    let text = String::from_utf8_lossy(&report);
    assert!(text.contains("\"skipped\": 6"), "{text}");
    assert!(text.contains("\"samples\": 18"), "{text}");
    (table, report)
}

#[test]
fn a_tokenizers_report_is_the_same_for_any_number_of_processes() {
    let place = place();
    let (table, report) = whole(&place);
    // More processes than batches too.
    for size in [2, 4, 6] {
        let name = format!("{size}.json");
        let outputs = start(&place, size, &eval(&name, "-q")).end();
        for (rank, output) in outputs.iter().enumerate() {
            let (told, said) = (told(output), String::from_utf8_lossy(&output.stdout));
            assert!(output.status.success(), "rank {rank}: {told}");
            assert_eq!(said, if rank == 0 { &table } else { "" }, "rank {rank}");
        }
        assert_eq!(fs::read(place.path(&name)).expect("a report"), report);
    }
    let bad = place.path("a/003.png");
    let outputs = start(
        &place,
        2,
        "eval-vae a --model model.safetensors --metrics psnr",
    )
    .end();
    for output in outputs {
        let told = told(&output);
        assert!(
            !output.status.success() && told.contains("003.png"),
            "{told}"
        );
    }
    fs::remove_file(bad).expect("removed");
}

#[test]
fn parts_of_a_tokenizers_report_are_joined_to_that_of_one_process() {
    let place = place();
    let (table, report) = whole(&place);
    let part = |part: &str| eval("all.json", &format!("-q --work parts --part {part}"));
    let all = eval("all.json", "-q --work parts");
    fails(
        &place,
        &all,
        1,
        &["parts are missing: 0/N", "without --work"],
    );
    fails(&place, &eval("x.json", "--part 0/2"), 2, &["--work"]);
    for i in [2, 0] {
        let said = run(&place, 1, &part(&format!("{i}/3")));
        let name = format!("parts/part-{i}-of-3.npz: ");
        assert!(
            said.starts_with(&name) && said.ends_with(" of 24 images\n"),
            "{said}"
        );
    }
    assert!(!place.path("all.json").exists());
    fails(&place, &all, 1, &["parts are missing: 1/3", "--part 1/3"]);
    run(&place, 1, &part("1/3"));
    for size in [1, 2] {
        assert_eq!(run(&place, size, &all), table);
        assert_eq!(fs::read(place.path("all.json")).expect("a report"), report);
    }
    // Of other images or metrics.
    for (more, key) in [
        ("--seed 1", "its seed is 0, expected 1"),
        ("--batch-size 4", "its batch-size is 5, expected 4"),
        ("--metrics psnr", "its ssim is true, expected false"),
    ] {
        let line = format!("{all} {more}");
        let line = match more {
            "--metrics psnr" => all.replace("psnr,ssim", "psnr"),
            "--batch-size 4" => all.replace("--batch-size 5", more),
            _ => line,
        };
        fails(&place, &line, 2, &[key, "hint: ", "another --work"]);
    }
    fs::remove_file(place.path("a/000.png")).expect("removed");
    fails(&place, &all, 2, &["its data is"]);
    run(&place, 1, &eval("fewer.json", "-q --work fewer --part 0/1"));
    let path = place.path("fewer/part-0-of-1.npz");
    let mut damaged = fs::read(&path).expect("a part");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&path, damaged).expect("written");
    let words = ["part-0-of-1.npz", "make it again with --part"];
    fails(&place, &eval("fewer.json", "--work fewer"), 1, &words);
    assert!(!place.path("fewer.json").exists());
}

#[test]
fn a_signal_to_any_rank_stops_a_tokenizers_evaluation() {
    let place = Place::new().with_model();
    // Enough to be stopped, and too few for an index that is kept.
    fs::create_dir(place.path("many")).expect("a folder");
    for i in 0..8_000 {
        let (from, to) = (format!("b/{:03}.png", i % 24), format!("many/{i}.png"));
        fs::hard_link(place.path(&from), place.path(&to)).expect("linked");
    }
    let line = "eval-vae many --model model.safetensors --metrics psnr --batch-size 1 -vv \
                --json x.json";
    let ranks = Ranks::start(2, |_| {
        let rdpm = command(&place, line);
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" \"$@\" 2>said-$RANK"]);
        shell.arg(rdpm.get_program()).args(rdpm.get_args());
        shell.current_dir(place.path(""));
        shell
    });
    let said =
        |rank: usize| fs::read_to_string(place.path(&format!("said-{rank}"))).unwrap_or_default();
    until("images are read", || said(0).contains("reading many/"));
    ranks.send("-TERM", 1);
    for (rank, output) in ranks.end().iter().enumerate() {
        let told = said(rank);
        assert_eq!(output.status.code(), Some(130), "rank {rank}: {told}");
        let says = told.contains(" of 8000 images") && told.contains("nothing was written");
        assert_eq!(says, rank == 0, "rank {rank}: {told}");
    }
    assert!(!place.path("x.json").exists());
}

#[test]
fn shards_of_codes_are_divided_among_processes() {
    let place = Place::new().with_model();
    let encode = |out: &str| {
        format!(
            "encode a --model model.safetensors --shard-size 5 --flip --format npy -q --json --out {out}"
        )
    };
    let said = run(&place, 1, &encode("one"));
    for size in [2, 3] {
        let out = format!("with-{size}");
        let expected = said.replace("\"one\"", &format!("{out:?}"));
        assert_eq!(run(&place, size, &encode(&out)), expected);
        assert_eq!(all_files(&place, &out), all_files(&place, "one"));
    }
    // The missing one is made again, whoever's it is.
    let gone = fs::read_dir(place.path("with-2")).expect("a folder");
    let gone = gone.map(|entry| entry.expect("an entry").path());
    let gone = gone.filter(|path| path.file_name().is_some_and(|name| name != "codes.json"));
    let gone = gone.min().expect("a shard");
    match gone.is_dir() {
        true => fs::remove_dir_all(&gone).expect("removed"),
        false => fs::remove_file(&gone).expect("removed"),
    }
    let again = run(&place, 3, &encode("with-2"));
    assert!(
        again.contains("\"shards\":5") && again.contains("\"kept\":4"),
        "{again}"
    );
    assert_eq!(all_files(&place, "with-2"), all_files(&place, "one"));
}

/// The names and bytes of all files below a folder, one folder deep.
fn all_files(place: &Place, out: &str) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(place.path(out)).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        all.extend(
            bytes(&path)
                .into_iter()
                .map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)),
        );
    }
    all.sort();
    all
}

#[test]
fn a_command_of_one_process_is_refused_to_all_ranks_but_the_first() {
    let place = Place::new().with_model();
    for (line, out) in [
        (
            "reconstruct a --model model.safetensors --out x.png",
            "x.png",
        ),
        ("encode a --model model.safetensors --out x.npy", "x.npy"),
        (
            "export --vae model.safetensors --out x.safetensors",
            "x.safetensors",
        ),
        ("pack a --size 16 --out packed", "packed"),
    ] {
        let name = line.split(' ').next().unwrap_or_default();
        let as_rank = |rank: &str| {
            command(&place, line)
                .envs([
                    ("RANK", rank),
                    ("WORLD_SIZE", "2"),
                    ("MASTER_ADDR", "127.0.0.1"),
                ])
                .output()
                .expect("it starts")
        };
        let second = as_rank("1");
        let words = told(&second);
        assert_eq!(second.status.code(), Some(2), "{line}: {words}");
        let expected = format!("{name} is one process, and a launcher started 2: this is rank 1");
        assert!(
            words.contains(&expected) && words.contains("hint: start it once"),
            "{words}"
        );
        assert!(!place.path(out).exists());
        // A script may start it in one of its processes.
        let first = as_rank("0");
        assert!(first.status.success(), "{line}: {}", told(&first));
        assert!(place.path(out).exists());
    }
    let mut silent = Command::new(env!("CARGO_BIN_EXE_rdpm"));
    silent
        .args(["completions", "bash"])
        .envs([("RANK", "1"), ("WORLD_SIZE", "2")]);
    assert!(
        silent
            .stdout(Stdio::null())
            .status()
            .expect("it starts")
            .success()
    );
}
