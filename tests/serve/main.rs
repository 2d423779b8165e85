//! `rdpm serve` over HTTP, with a small untrained model.

mod client;
mod hostile;
mod load;

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use candle_core::{Device, Tensor};
use client::{Answer, Server, rdpm};
use image::RgbImage;
use rdpm::config::Config;
use rdpm::data::Classes;
use rdpm::data::Source;
use rdpm::data::shapes::Shapes;
use rdpm::error::Result;
use rdpm::model::{Generator, Tokenizer};
use rdpm::rng::{Purpose, normal};
use rdpm::store::Scope;
use rdpm::store::bundle::Bundle;
use serde_json::{Value, json};

/// The demo's architecture, but smaller, with random parameters.
fn prepare(folder: &Path) -> Result<()> {
    let mut config = Config::load(Some("demo"), &[])?;
    config.tokenizer.ch = 32;
    config.quantizer.codebook_size = 64;
    config.quantizer.steps = 4;
    (config.generator.depth, config.generator.width) = (2, Some(64));
    config.generator.heads = Some(2);
    let random =
        |make: &dyn Fn(&Scope) -> candle_core::Result<()>| -> Result<BTreeMap<String, Tensor>> {
            let scope = Scope::init(1, &Device::Cpu);
            make(&scope)?;
            let params = scope.finish();
            for (i, (_, var)) in params.iter().enumerate() {
                let noise = normal(1, Purpose::Init, &[i as u64], 0, var.dims(), var.device())?;
                var.set(&(var.as_tensor() + (noise.squeeze(0)? * 0.1)?)?)?;
            }
            Ok(params.tensors())
        };
    let classes = Shapes::new(1, 1).classes().clone();
    let tokenizer = random(&|scope| Tokenizer::new(&config, scope).map(drop))?;
    let generator = random(&|scope| Generator::new(&config, classes.len(), scope).map(drop))?;
    let bundle = Bundle {
        classes: serde_json::to_value::<Classes>(classes)?,
        generator: Some(generator),
        ..Bundle::new(config, tokenizer)
    };
    bundle.write(&folder.join("model.safetensors"), false)
}

/// A folder with the model.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    prepare(folder.path()).expect("a model");
    folder
}

fn decoded(png: &[u8]) -> RgbImage {
    image::load_from_memory(png).expect("a PNG").into_rgb8()
}

/// A PNG in base64.
fn picture(value: &Value) -> RgbImage {
    decoded(
        &STANDARD
            .decode(value.as_str().expect("text"))
            .expect("base64"),
    )
}

fn pictures(answer: &Answer) -> Vec<RgbImage> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    let images = answer["images"].as_array().expect("images");
    images.iter().map(|image| picture(&image["png"])).collect()
}

fn file(folder: &Path, name: &str) -> RgbImage {
    decoded(&std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")))
}

#[test]
fn a_request_draws_the_pictures_of_the_command_that_it_names() {
    let folder = place();
    let (at, server) = (folder.path(), Server::start(folder.path(), ""));
    let bodies = [
        json!({"class": "disc, star", "num": 5, "seed": 7, "cfg": 2.5, "temperature": 0.8}),
        json!({"class": "moon", "num": 2, "seed": u64::MAX, "cfg": 2.5, "temperature": 0.8}),
        json!({"class": 3, "num": 3, "seed": 7, "cfg": 0, "cfg_schedule": "constant", "top_k": 9, "top_p": 0.9}),
        json!({"class": "ring", "gumbel": false}),
    ];
    // All at once, so that they share batches.
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let server = &server;
        let ask = bodies
            .iter()
            .map(|body| scope.spawn(move || server.draw(body)));
        let threads: Vec<_> = ask.collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|answer| answer.expect("an answer")).collect()
    });
    for (i, (answer, body)) in answers.iter().zip(&bodies).enumerate() {
        let (found, facts) = (pictures(answer), answer.json());
        if let Some(seed) = body["seed"].as_u64() {
            assert_eq!(facts["seed"].as_u64(), Some(seed));
        }
        let line = facts["command"].as_str().expect("a command");
        let line = line
            .strip_prefix("rdpm ")
            .expect("its name")
            .replace('\'', "");
        // A list of classes is quoted in a shell; here words are split at spaces.
        let line = line.replace("disc, star", "disc,star");
        rdpm(at, &format!("{line} --out {i}"));
        for (number, picture) in found.iter().enumerate() {
            let label = facts["images"][number]["index"].as_u64().expect("an index");
            let expected = file(at, &format!("{i}/index{label:04}-{number:06}.png"));
            assert!(*picture == expected, "{body}: image {number} differs");
        }
        assert_eq!(
            found.len(),
            facts["images"].as_array().expect("a list").len()
        );
    }
    // A PNG, one image or a sheet.
    let png = |body: &Value| {
        let head = "POST /v1/images\r\nContent-Type: application/json\r\nAccept: image/png";
        server.ask(head, body.to_string().as_bytes())
    };
    let one = png(&json!({"class": "disc", "seed": 7, "cfg": 2.5, "temperature": 0.8}));
    assert!(decoded(&one.body) == pictures(&answers[0])[0]);
    assert!(one.head.contains("x-rdpm-seed: 7\r\n"), "{}", one.head);
    let sheet = decoded(&png(&bodies[1]).body);
    assert_eq!(sheet.dimensions(), (32 + 2 + 32, 32));
}

#[test]
fn previews_come_step_by_step_and_end_with_the_picture() {
    let folder = place();
    let (at, server) = (folder.path(), Server::start(folder.path(), ""));
    let body = json!({"class": "cross", "num": 3, "seed": 5});
    let answer = Answer::read(server.stream(&body));
    assert!(
        answer.head.contains("content-type: text/event-stream"),
        "{}",
        answer.head
    );
    let events = answer.events();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "accepted", "preview", "preview", "preview", "preview", "done"
        ]
    );
    let accepted = &events[0].1;
    assert_eq!(
        (&accepted["seed"], &accepted["steps"]),
        (&json!(5), &json!(4))
    );
    rdpm(
        at,
        "sample --model model.safetensors --class cross --num 3 --seed 5 --show-steps --out strips",
    );
    for (t, (_, preview)) in (1..=4).zip(&events[1..5]) {
        assert_eq!((&preview["t"], &preview["steps"]), (&json!(t), &json!(4)));
        for number in 0..3 {
            let image = &preview["images"][number];
            assert_eq!(image["number"], number);
            let label = accepted["images"][number]["index"]
                .as_u64()
                .expect("an index");
            let strip = file(at, &format!("strips/index{label:04}-{number:06}.png"));
            let found = picture(&image["png"]);
            // Two white pixels are between the images of a strip.
            let part = image::imageops::crop_imm(&strip, (t - 1) * 34, 0, 32, 32);
            assert!(found == part.to_image(), "step {t} of image {number}");
        }
    }
    assert_eq!(
        pictures(&server.draw(&body))[2],
        picture(&events[4].1["images"][2]["png"])
    );
}

#[test]
fn a_reconstruction_is_that_of_the_command() -> Result<()> {
    let folder = place();
    let (at, server) = (folder.path(), Server::start(folder.path(), ""));
    let drawing = Shapes::new(3, 4).read(2)?.image;
    // Larger than the model, and no square.
    let large = image::imageops::resize(&drawing, 90, 70, image::imageops::FilterType::Triangle);
    std::fs::create_dir(at.join("one"))?;
    large.save(at.join("one/a.png"))?;
    rdpm(
        at,
        "reconstruct one --model model.safetensors --seed 9 --out pairs",
    );
    let pair = std::fs::read_dir(at.join("pairs"))?
        .next()
        .expect("a pair")?
        .path();
    let pair = decoded(&std::fs::read(pair)?);
    let bytes = std::fs::read(at.join("one/a.png"))?;
    let answer = server.ask("POST /v1/reconstruct?seed=9", &bytes);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let facts = answer.json();
    let half = |x| image::imageops::crop_imm(&pair, x, 0, 32, 32).to_image();
    assert!(picture(&facts["original"]) == half(0));
    let steps = facts["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 4);
    assert!(picture(&steps[3]) == half(pair.width() - 32));
    let codes: Vec<Vec<Vec<u32>>> = serde_json::from_value(facts["codes"].clone())?;
    assert_eq!((codes.len(), codes[0].len(), codes[0][0].len()), (4, 8, 8));
    assert!(codes.iter().flatten().flatten().all(|code| *code < 64));
    assert!(facts["psnr"].as_f64() > Some(0.0));
    let png = server.ask("POST /v1/reconstruct?seed=9\r\nAccept: image/png", &bytes);
    assert!(decoded(&png.body) == picture(&steps[3]));
    Ok(())
}

#[test]
fn the_page_comes_from_here_alone_and_classes_have_their_words() {
    let folder = place();
    let server = Server::start(folder.path(), "--max-num 5");
    let scripts = ["api", "classes", "save", "draw", "reconstruct", "page"];
    let scripts = scripts.map(|name| (format!("/page/{name}.js"), "text/javascript"));
    let others = [("/", "text/html"), ("/page/page.css", "text/css")];
    let others = others.map(|(path, kind)| (path.to_string(), kind));
    for (path, kind) in others.into_iter().chain(scripts) {
        let answer = server.ask(&format!("GET {path}"), b"");
        assert_eq!(answer.status, 200);
        assert!(
            answer.head.contains(&format!("content-type: {kind}")),
            "{}",
            answer.head
        );
        let policy =
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';";
        assert!(answer.head.contains(policy), "{}", answer.head);
        for elsewhere in ["http://", "https://", "//cdn"] {
            // The name space of the icon's SVG is no address.
            let text = answer.text().replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains(elsewhere), "{path} names {elsewhere}");
        }
    }
    let facts = server.ask("GET /v1/classes", b"").json();
    assert_eq!(facts["classes"].as_array().map(Vec::len), Some(10));
    assert_eq!(facts["model"]["image_size"], 32);
    assert_eq!(facts["limits"]["num"], 5);
    assert_eq!(server.ask("GET /healthz", b"").text(), "ok\n");
    assert_eq!(
        server.metric("rdpm_http_requests_total{route=\"/\",code=\"200\"}"),
        1.0
    );
}
