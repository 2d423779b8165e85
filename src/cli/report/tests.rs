//! Pages about runs that are whole, going on, damaged and hostile.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::config::Config;
use crate::store::run::Run;

fn line(step: u64, rest: &str) -> String {
    format!("{{\"step\":{step},\"images_per_second\":100.0{rest}}}\n")
}

/// A run of `stage` in `folder` with these lines of metrics.
fn made(folder: &Path, name: &str, stage: &str, metrics: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    drop(Run::create(
        Some(&path),
        stage,
        &Config::load(Some("smoke"), &[])?,
    )?);
    fs::write(path.join("metrics.jsonl"), metrics)?;
    Ok(path)
}

fn page_of(runs: &[PathBuf]) -> Result<String> {
    let facts = runs.iter().zip(run::names(runs));
    let facts = facts.map(|(path, name)| RunFacts::read(path, name, 12));
    Ok(page::page(&facts.collect::<Result<Vec<_>>>()?))
}

/// What of a page is markup or script: a hostile text there would be one.
fn tags(page: &str) -> usize {
    page.matches('<').count()
}

#[test]
fn a_page_needs_no_other_file_and_names_every_metric() -> Result<()> {
    let root = tempfile::tempdir()?;
    let mut lines: String = (1..50)
        .map(|i| line(i * 10, &format!(",\"loss\":{},\"mse\":0.1", 1.0 / i as f64)))
        .collect();
    lines.push_str(&line(500, ",\"loss\":null,\"psnr_t\":[1.0,2.5,null]"));
    let path = made(root.path(), "a", "train-vae", &lines)?;
    image::RgbImage::new(4, 2).save(path.join("images/step-00000010.png"))?;
    let page = page_of(&[path])?;
    for part in [
        "<b>loss</b>",
        "<b>mse</b>",
        "<b>psnr_t</b>",
        "data:image/png;base64,",
        "1 not finite",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for other in ["src=\"http", "href=", "url(", "@import", "fetch("] {
        assert!(!page.contains(other), "{other}");
    }
    Ok(())
}

#[test]
fn what_comes_from_files_is_text() -> Result<()> {
    let root = tempfile::tempdir()?;
    let plain = made(root.path(), "plain", "train-vae", &line(1, ",\"loss\":1.0"))?;
    let evil = "<img src=x onerror=alert(1)>\"'&";
    let metrics = line(1, ",\"loss\":1.0").replace("loss", "loss<script>alert(1)</script>");
    let hostile = made(root.path(), evil, "train-vae", &metrics)?;
    let config = fs::read_to_string(hostile.join("config.toml"))?;
    let config =
        format!("{config}\n[\"</table>\"]\nkey = \"</script><script>alert(2)</script>\"\n");
    fs::write(hostile.join("config.toml"), config)?;
    fs::write(
        hostile.join("starts.jsonl"),
        "{\"command\":\"<b>rm</b>\",\"device\":\"</code>\"}\n",
    )?;
    let json = "{\"metrics\":{\"</td><script>\":{\"value\":1.0}},\"samples\":{}}";
    fs::write(hostile.join("<i>.json"), json)?;
    // The first has as many of everything, with names that are harmless.
    fs::write(
        plain.join("starts.jsonl"),
        "{\"command\":\"rm\",\"device\":\"c\"}\n",
    )?;
    fs::write(plain.join("i.json"), json.replace("</td><script>", "fid"))?;
    let config = fs::read_to_string(plain.join("config.toml"))?;
    fs::write(
        plain.join("config.toml"),
        format!("{config}\n[other]\nkey = \"a\"\n"),
    )?;
    let (page, tame) = (page_of(&[hostile])?, page_of(&[plain])?);
    assert_eq!(tags(&page), tags(&tame));
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;"));
    Ok(())
}

#[test]
fn a_run_that_is_going_on_empty_or_damaged_is_shown_as_far_as_it_is() -> Result<()> {
    let root = tempfile::tempdir()?;
    let torn = format!("{}{{\"step\":20,\"lo", line(10, ",\"loss\":1.0,\"mse\":1"));
    let runs = [
        made(root.path(), "live", "train-vae", &torn)?,
        made(root.path(), "empty", "train-gen", "")?,
        made(
            root.path(),
            "damaged",
            "train-gen",
            "no JSON\n{\"step\":3,\"accuracy_t\":[]}\n",
        )?,
    ];
    fs::write(runs[2].join("config.toml"), "= no TOML")?;
    fs::write(runs[2].join("images/step-00000003.png"), "no picture")?;
    fs::create_dir(runs[2].join("checkpoints/step-00000003"))?;
    fs::write(runs[2].join("checkpoints/step-00000003/state.json"), "{")?;
    let page = page_of(&runs)?;
    for told in [
        "live: its last line is not whole",
        "damaged: 1 lines are no metrics",
        "damaged: config.toml: it is no TOML",
        "damaged: the state of its newest checkpoint is damaged",
        "not an image",
        "<h2>Tokenizer</h2>",
        "<h2>Generator</h2>",
        "no metrics yet",
    ] {
        assert!(page.contains(told), "{told}");
    }
    Ok(())
}

#[test]
fn lines_that_were_logged_again_count_once_and_time_adds_up() -> Result<()> {
    let root = tempfile::tempdir()?;
    let lines = (0..)
        .zip([10, 20, 30, 20, 30, 40])
        .map(|(i, step)| line(step, &format!(",\"loss\":{i},\"mse\":1,\"psnr_t\":[{i}]")));
    let lines: String = lines.collect();
    let path = made(root.path(), "a", "train-vae", &lines)?;
    let run = RunFacts::read(&path, "a".to_string(), 0)?;
    let lines = &run.metrics.lines;
    let steps: Vec<u64> = lines.iter().map(|line| line.step).collect();
    assert_eq!(steps, [10, 20, 30, 40]);
    let batch = Config::load(Some("smoke"), &[])?.train_vae.batch_size as f64;
    let logged: Vec<Option<f64>> = run.metrics.single("loss").map(|(_, y)| y).collect();
    assert_eq!(logged, [Some(0.0), Some(3.0), Some(4.0), Some(5.0)]);
    let over_t: Vec<f64> = run.metrics.over_t("psnr_t").map(|(_, y)| y[0]).collect();
    assert_eq!(over_t, [0.0, 3.0, 4.0, 5.0]);
    let seconds = lines[3].seconds.expect("it says how fast it is");
    assert!((seconds - 40.0 * batch / 100.0).abs() < 1e-9, "{seconds}");
    Ok(())
}

#[test]
fn a_pipe_in_a_files_place_is_not_waited_for() -> Result<()> {
    let root = tempfile::tempdir()?;
    let path = made(root.path(), "a", "train-vae", "")?;
    fs::create_dir_all(path.join("checkpoints/step-00000003"))?;
    fs::write(path.join("checkpoints/latest"), "step-00000003")?;
    let pipes = [
        "metrics.jsonl",
        "starts.jsonl",
        "images/step-00000001.png",
        "checkpoints/step-00000003/state.json",
        "report.json",
    ];
    for name in pipes {
        let place = path.join(name);
        if place.exists() {
            fs::remove_file(&place)?;
        }
        let made = std::process::Command::new("mkfifo").arg(&place).status()?;
        assert!(made.success(), "{name}");
    }
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(page_of(&[path])));
    let page = receive.recv_timeout(std::time::Duration::from_secs(60));
    let page = page.expect("it does not wait for a writer")?;
    assert!(page.contains("a: it has no metrics.jsonl"), "{page}");
    Ok(())
}

#[test]
fn a_report_does_not_replace_what_it_is_made_from() -> Result<()> {
    let root = tempfile::tempdir()?;
    let path = made(root.path(), "a", "train-vae", &line(1, ",\"loss\":1.0"))?;
    let alone = root.path().join("metrics.jsonl");
    fs::copy(path.join("metrics.jsonl"), &alone)?;
    let runs = [path.clone(), alone.clone()];
    for out in [alone, path.join("metrics.jsonl"), path.join("config.toml")] {
        let (text, code) = crate::error::report(&check_apart(&out, &runs).unwrap_err());
        assert!(text.contains("made from this file") && code == 2, "{text}");
    }
    fs::write(path.join("report.html"), "")?;
    check_apart(&path.join("report.html"), &runs)?;
    check_apart(&root.path().join("new.html"), &runs)
}

#[test]
fn runs_are_told_apart_by_as_little_as_it_takes() {
    let name = |paths: &[&str]| {
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        run::names(&paths)
    };
    assert_eq!(name(&["/x/a", "/x/b"]), ["a", "b"]);
    assert_eq!(name(&["/x/a", "/y/a"]), ["x/a", "y/a"]);
    assert_eq!(name(&["/x/a"]), ["a"]);
    assert_eq!(name(&["/x/a", "/x/a"]), ["x/a", "x/a"]);
}

#[test]
fn a_path_that_is_no_run_is_an_error() {
    let root = tempfile::tempdir().expect("a folder");
    for path in [root.path().to_path_buf(), root.path().join("none")] {
        let error = RunFacts::read(&path, "a".to_string(), 1).expect_err("no run");
        let (text, _) = crate::error::report(&error);
        assert!(text.contains("hint: "), "{text}");
    }
}
