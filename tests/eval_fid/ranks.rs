//! Samples that several processes draw: the same images and the same report, to the bit, as one
//! process makes; and the parts of job arrays.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rdpm::world::Port;

use super::Place;
use super::processes::Ranks;

pub fn start(place: &Place, size: usize, line: &str) -> Ranks {
    Ranks::start(size, |_| command(place, line))
}

pub fn command(place: &Place, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rdpm"));
    command
        .args(line.split_whitespace())
        .current_dir(place.0.path())
        .env("XDG_CONFIG_HOME", place.path("config"))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `line` in so many processes, which succeed; only the first says anything. Returns that.
pub fn run(place: &Place, size: usize, line: &str) -> String {
    if size == 1 {
        let output = command(place, line).output().expect("it starts");
        assert!(output.status.success(), "{line}: {}", told(&output));
        return String::from_utf8_lossy(&output.stdout).into_owned();
    }
    let outputs = start(place, size, line).end();
    for (rank, output) in outputs.iter().enumerate() {
        let told = told(output);
        assert!(output.status.success(), "{line}, rank {rank}: {told}");
        let silent = told.is_empty() && output.stdout.is_empty();
        assert!(rank == 0 || silent, "{line}, rank {rank}: {told}");
    }
    String::from_utf8_lossy(&outputs[0].stdout).into_owned()
}

/// `line` fails so, and says this.
pub fn fails(place: &Place, line: &str, code: i32, parts: &[&str]) {
    let output = command(place, line).output().expect("it starts");
    let told = told(&output);
    assert_eq!(output.status.code(), Some(code), "{line}: {told}");
    for part in parts {
        assert!(told.contains(part), "{line}: no `{part}` in {told}");
    }
}

/// The bytes of a file, or of all files of a folder.
pub fn bytes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |path: &Path| fs::read(path).expect("a file");
    if path.is_file() {
        return BTreeMap::from([(String::new(), read(path))]);
    }
    let files = fs::read_dir(path).expect("a folder").map(|file| {
        let file = file.expect("a file");
        let name = file.file_name().to_string_lossy().into_owned();
        (name, read(&file.path()))
    });
    files.collect()
}

/// `line` with these options, unless `more` has others.
pub fn with(line: &str, options: &[(&str, u32)], more: &str) -> String {
    let options = options.iter().filter(|(name, _)| !more.contains(name));
    let options: Vec<String> = options.map(|(name, n)| format!("{name} {n}")).collect();
    format!("{line} {} {more}", options.join(" "))
}

/// 23 samples in six batches, which neither two nor three processes divide, and 24 images.
fn eval(work: &str, more: &str) -> String {
    let line = format!(
        "eval-fid --dims 64 --weights w.safetensors --metrics fid \
         --samples model.safetensors --reference b --work {work} --json {work}.json"
    );
    with(&line, &[("--num", 23), ("--batch-size", 4)], more)
}

/// Images of the untrained model, in six batches too.
fn sample(out: &str, more: &str) -> String {
    let line = format!("sample --model model.safetensors --class all --out {out}");
    with(&line, &[("--batch-size", 4)], more)
}

#[test]
fn a_report_is_the_same_for_any_number_of_processes() {
    let place = Place::new().with_model();
    let whole = run(&place, 1, &eval("one", ""));
    let report = fs::read(place.path("one.json")).expect("a report");
    let folders = |json: &str| {
        format!(
            "eval-fid --dims 64 --weights w.safetensors --metrics fid --samples a --reference b \
             --batch-size 5 --json {json}"
        )
    };
    run(&place, 1, &folders("folders.json"));
    for size in [2, 3] {
        let name = format!("with-{size}");
        assert_eq!(run(&place, size, &eval(&name, "-q")), whole);
        assert_eq!(
            fs::read(place.path(&format!("{name}.json"))).expect("a report"),
            report
        );
        // Only what is missing is computed, whoever computed the rest.
        let name = format!("goes-on-{size}");
        run(&place, 5 - size, &eval(&name, "--num 10"));
        run(&place, size, &eval(&name, ""));
        assert_eq!(
            fs::read(place.path(&format!("{name}.json"))).expect("a report"),
            report
        );
        let name = format!("folders-{size}.json");
        run(&place, size, &folders(&name));
        assert_eq!(
            bytes(&place.path(&name)),
            bytes(&place.path("folders.json"))
        );
    }
    let features = |name: &str| bytes(&place.path(name));
    assert!(
        features("one")
            .values()
            .any(|file| file.len() == 23 * 64 * 4)
    );
    assert_eq!(features("with-3"), features("one"));
}

#[test]
fn an_array_of_images_is_divided_too() {
    let place = Place::new().with_model();
    run(&place, 1, &sample("array.npz", "--num 23"));
    let line = |json: &str| {
        format!(
            "eval-fid --dims 64 --weights w.safetensors --metrics fid --samples array.npz \
             --reference b --batch-size 5 --json {json}"
        )
    };
    run(&place, 1, &line("one.json"));
    run(&place, 3, &line("three.json"));
    assert_eq!(
        bytes(&place.path("three.json")),
        bytes(&place.path("one.json"))
    );
    // A damaged one is found by its checksum.
    let mut whole = fs::read(place.path("array.npz")).expect("a file");
    let middle = 20 * 16 * 16 * 3;
    whole[middle] ^= 1;
    fs::write(place.path("array.npz"), whole).expect("written");
    fails(
        &place,
        &line("x.json"),
        1,
        &["array.npz", "damaged", "hint: "],
    );
}

#[test]
fn images_are_the_same_for_any_number_of_processes() {
    let place = Place::new().with_model();
    for (kind, more) in [
        ("x.npz", "--num 23"),
        ("x", "--num 23"),
        // Rows of a class: another order.
        ("sheet.png", "--num 22"),
        ("strips", "--num 6 --show-steps"),
    ] {
        let name = |size: usize| format!("{size}-{kind}");
        for size in [1, 2, 3] {
            run(&place, size, &sample(&name(size), &format!("-q {more}")));
            let found = bytes(&place.path(&name(size)));
            assert_eq!(found, bytes(&place.path(&name(1))), "{kind}, {size}");
        }
    }
    // More processes than batches.
    let said = run(
        &place,
        3,
        &sample("few.npz", "-q --num 23 --batch-size 20 --json"),
    );
    assert!(said.contains("\"images\":23"), "{said}");
    assert_eq!(bytes(&place.path("few.npz")), bytes(&place.path("1-x.npz")));
}

#[test]
fn parts_of_images_are_joined_to_what_one_process_draws() {
    let place = Place::new().with_model();
    for (kind, more) in [
        ("x.npz", "--num 23"),
        ("x", "--num 23"),
        ("sheet.png", "--num 22"),
        ("strips", "--num 6 --show-steps"),
    ] {
        run(&place, 1, &sample(&format!("one-{kind}"), more));
        let out = format!("all-{kind}");
        for part in [2, 0, 1] {
            let said = run(&place, 1, &sample(&out, &format!("{more} --part {part}/3")));
            let name = format!("{out}.parts/part-{part}-of-3.npz");
            assert!(said.starts_with(&name), "{said}");
            assert!(!place.path(&out).exists());
        }
        run(&place, 1, &sample(&out, more));
        assert_eq!(
            bytes(&place.path(&out)),
            bytes(&place.path(&format!("one-{kind}")))
        );
    }
    // Joined by several processes of a launcher too.
    fs::remove_file(place.path("all-x.npz")).expect("removed");
    run(&place, 2, &sample("all-x.npz", "--num 23"));
    assert_eq!(
        bytes(&place.path("all-x.npz")),
        bytes(&place.path("one-x.npz"))
    );
}

#[test]
fn parts_that_do_not_make_a_whole_are_refused() {
    let place = Place::new().with_model();
    let line = |more: &str| sample("x.npz", &format!("--num 23 {more}"));
    for (part, why) in [
        ("4/4", "the last is 3/4"),
        ("5/4", "the last is 3/4"),
        ("1", "such as 0/4"),
    ] {
        fails(
            &place,
            &line(&format!("--part {part}")),
            2,
            &["--part", why],
        );
    }
    run(&place, 1, &line("--part 1/3"));
    fails(
        &place,
        &line(""),
        1,
        &["parts are missing: 0/3, 2/3", "--part 0/3"],
    );
    // Made again, it is there already: for these images only.
    let written = || fs::metadata(place.path("x.npz.parts/part-1-of-3.npz")).expect("there");
    let before = written().modified().expect("a time");
    run(&place, 1, &line("--part 1/3"));
    assert_eq!(written().modified().expect("a time"), before);
    let other = ["its seed is 0, expected 1", "hint: "];
    fails(&place, &line("--part 1/3 --seed 1"), 2, &other);
    run(&place, 1, &line("--part 0/3"));
    run(&place, 1, &line("--part 2/3"));
    fails(&place, &line("--seed 1"), 2, &other);
    fails(
        &place,
        &line("--batch-size 5"),
        2,
        &["its batch-size is 4, expected 5"],
    );
    let path = place.path("x.npz.parts/part-2-of-3.npz");
    let whole = fs::read(&path).expect("a part");
    let mut damaged = whole.clone();
    damaged[5 * 16 * 16 * 3] ^= 1;
    for bytes in [&damaged[..], &whole[..whole.len() / 2]] {
        fs::write(&path, bytes).expect("written");
        let words = [
            "part-2-of-3.npz",
            "remove this part, and make it again with --part",
        ];
        fails(&place, &line(""), 1, &words);
        assert!(!place.path("x.npz").exists());
    }
    fs::write(&path, whole).expect("written");
    run(&place, 1, &line("--part 1/2"));
    fails(
        &place,
        &line(""),
        1,
        &["parts of 2 and parts of 3", "hint: "],
    );
    fs::remove_file(place.path("x.npz.parts/part-1-of-2.npz")).expect("removed");
    run(&place, 1, &line(""));
}

#[test]
fn parts_of_features_are_joined_to_the_report_of_one_process() {
    let place = Place::new().with_model();
    run(&place, 1, &eval("one", ""));
    for part in [2, 0] {
        let said = run(&place, 1, &eval("all", &format!("--part {part}/3")));
        assert!(
            said.starts_with(&format!("all/part-{part}-of-3: ")),
            "{said}"
        );
        assert!(!place.path("all.json").exists());
    }
    let missing = ["parts are not whole: 1/3 (0 of 8 samples)", "--part 1/3"];
    fails(&place, &eval("all", ""), 1, &missing);
    // An interrupted part goes on.
    run(&place, 1, &eval("all", "--part 1/3 --num 7"));
    let short = ["parts are not whole: 1/3 (3 of 8 samples)"];
    fails(&place, &eval("all", ""), 1, &short);
    let other = |key: &str| format!("features of other samples: their {key} is");
    for (more, key) in [("--batch-size 5", "batch size"), ("--seed 1", "seed")] {
        let line = eval("all", &format!("{more} --part 1/3"));
        fails(&place, &line, 1, &[&other(key), "--work"]);
    }
    run(&place, 1, &eval("all", "--part 1/3"));
    fails(
        &place,
        &eval("all", "--batch-size 5"),
        1,
        &[&other("batch size")],
    );
    run(&place, 2, &eval("all", ""));
    assert_eq!(
        bytes(&place.path("all.json")),
        bytes(&place.path("one.json"))
    );
    // Now all are known without the parts.
    fs::remove_dir_all(place.path("all/part-0-of-3")).expect("removed");
    run(&place, 1, &eval("all", ""));
    run(&place, 1, &eval("two", "--part 0/2"));
    run(&place, 1, &eval("two", "--part 0/3"));
    fails(&place, &eval("two", ""), 1, &["parts of 2 and parts of 3"]);
    let folder = "eval-fid --weights w.safetensors --dims 64 --metrics fid --samples a \
                  --reference b --part 0/2";
    fails(&place, folder, 2, &["--part: a is no model to sample from"]);
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(180), "until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The samples whose features are in `work`.
fn known(work: &Path) -> u64 {
    let files = fs::read_dir(work).into_iter().flatten().flatten();
    let taps = files.filter(|file| file.path().extension().is_some_and(|e| e == "f32"));
    let sizes = taps.map(|tap| tap.metadata().map_or(0, |m| m.len() / (64 * 4)));
    sizes.min().unwrap_or(0)
}

#[test]
fn a_signal_to_any_rank_stops_all_and_leaves_nothing_half() {
    let place = Place::new().with_model();
    for rank in [0, 1] {
        let ranks = start(&place, 2, &sample("x.npz", "--num 1000000"));
        let partial = place.path(".x.npz.partial");
        until("images come", || {
            fs::metadata(&partial).is_ok_and(|m| m.len() > 0)
        });
        ranks.send("-TERM", rank);
        for (i, output) in ranks.end().iter().enumerate() {
            let told = told(output);
            assert_eq!(output.status.code(), Some(130), "rank {i}: {told}");
            let says = told.contains("nothing was written to x.npz");
            assert_eq!(says, i == 0, "rank {i}: {told}");
        }
        assert!(!partial.exists() && !place.path("x.npz").exists());
        // Features are kept.
        let work = format!("work-{rank}");
        let ranks = start(&place, 2, &eval(&work, "--num 1000000"));
        until("features come", || known(&place.path(&work)) > 8);
        ranks.send("-TERM", rank);
        for (i, output) in ranks.end().iter().enumerate() {
            let told = told(output);
            assert_eq!(output.status.code(), Some(130), "rank {i}: {told}");
            let says = told.contains("the same command continues from there");
            assert_eq!(says, i == 0, "rank {i}: {told}");
        }
        let known = known(&place.path(&work));
        assert!(known > 8 && known.is_multiple_of(4), "{known}");
    }
}

#[test]
fn a_killed_rank_ends_all_and_is_named() {
    let place = Place::new().with_model();
    for (victim, out) in [(0, "x.npz"), (1, "y.npz")] {
        let ranks = start(&place, 2, &sample(out, "--num 1000000"));
        let partial = place.path(&format!(".{out}.partial"));
        until("images come", || {
            fs::metadata(&partial).is_ok_and(|m| m.len() > 0)
        });
        ranks.send("-KILL", victim);
        let outputs = ranks.end();
        let told = told(&outputs[1 - victim]);
        assert_eq!(outputs[1 - victim].status.code(), Some(1), "{told}");
        let named = format!("error: rank {victim} (");
        assert!(
            told.contains(&named) && told.contains(") stopped after batch "),
            "{told}"
        );
        assert!(
            told.contains("nothing was written: start all ranks again"),
            "{told}"
        );
        assert!(!place.path(out).exists());
    }
    // The next output sweeps what was left.
    run(&place, 2, &sample("z.npz", "--num 8"));
    let partial = |name: &str| place.path(&format!(".{name}.partial")).exists();
    assert!(!partial("x.npz") && !partial("y.npz"));
}

#[test]
fn ranks_with_other_samples_are_named() {
    let place = Place::new().with_model();
    for line in [sample("x.npz", ""), eval("work", "")] {
        let port = Port::reserve().expect("a port");
        let own = |rank: usize| {
            let mut command = command(&place, &line);
            command.args(["--seed", &rank.to_string()]);
            command
        };
        let variables = |rank: usize| {
            vec![
                ("RANK", rank.to_string()),
                ("WORLD_SIZE", "2".to_string()),
                ("MASTER_ADDR", "127.0.0.1".to_string()),
                ("MASTER_PORT", port.number().to_string()),
            ]
        };
        let ranks = Ranks::start_with(2, own, variables);
        for output in ranks.end() {
            let told = told(&output);
            assert!(told.contains("has the seed 1, but rank 0 ("), "{told}");
            assert!(!output.status.success());
        }
    }
}

#[test]
fn launch_divides_samples() {
    let place = Place::new().with_model();
    run(&place, 1, &sample("one.npz", "--num 23"));
    let line = sample("two.npz", "--num 23");
    let said = run(&place, 1, &format!("launch --nproc 2 -- {line}"));
    assert_eq!(said, "two.npz\n");
    assert_eq!(bytes(&place.path("two.npz")), bytes(&place.path("one.npz")));
}
