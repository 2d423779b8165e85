use super::*;
use crate::error::report;

fn sets(sets: &[&str]) -> Result<Config> {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Config::load(None, &sets)
}

/// The error as the user sees it.
fn refusal(result: Result<Config>) -> String {
    let (text, code) = report(&result.expect_err("this must be refused"));
    assert_eq!(code, 2, "a wrong configuration is bad usage: {text}");
    text
}

#[test]
fn a_partial_section_keeps_its_own_stage_defaults() -> Result<()> {
    let config = Config::from_toml("[train_vae]\nlr = 1e-3\n[train_gen]\nlr = 1e-3")?;
    assert_eq!(config.train_vae.betas, (0.5, 0.9));
    assert_eq!(config.train_gen.betas, (0.9, 0.95));
    assert_eq!(config.train_gen.lr, 1e-3);
    Ok(())
}

#[test]
fn set_lies_over_the_file_and_the_file_over_the_defaults() -> Result<()> {
    let config = Config::load(Some("demo"), &["quantizer.steps=6".into()])?;
    assert_eq!(config.quantizer.steps, 6);
    assert_eq!(config.quantizer.codebook_size, 512);
    assert_eq!(config.quantizer.commitment, 0.25);
    Ok(())
}

#[test]
fn values_are_read_as_the_key_wants_them() -> Result<()> {
    let config = sets(&[
        "schedule.kind=linear",
        "generator.rope = 2d",
        "tokenizer.ch_mult=1,2,4",
        "data.train=a/*.tar,b",
        "data.val=[\"c d\"]",
        "loss.vgg=2024",
        "loss.quant_weight=2",
        "train_gen.betas=[0.8, 0.9]",
        "data.flip=false",
    ])?;
    assert_eq!(config.schedule.kind, ScheduleKind::Linear);
    assert_eq!(config.generator.rope, Rope::TwoD);
    assert_eq!(config.tokenizer.ch_mult, [1, 2, 4]);
    assert_eq!(config.data.train, ["a/*.tar", "b"]);
    assert_eq!(config.data.val, ["c d"]);
    assert_eq!(config.loss.vgg.as_deref(), Some("2024"));
    assert_eq!(config.loss.quant_weight, 2.0);
    assert_eq!(config.train_gen.betas, (0.8, 0.9));
    assert!(!config.data.flip);
    Ok(())
}

#[test]
fn steps_and_epochs_replace_each_other() -> Result<()> {
    let config = Config::load(Some("smoke"), &["train_vae.epochs=2".into()])?;
    assert_eq!(
        (config.train_vae.steps, config.train_vae.epochs),
        (None, Some(2.0))
    );
    assert_eq!(config.train_vae.total_steps(100), 25);
    assert_eq!(config.train_gen.total_steps(100), 40);
    let mut train = TrainConfig::vae();
    (train.batch_size, train.epochs) = (32, Some(1.5));
    train.steps = None;
    assert_eq!(train.total_steps(100), 5);
    train.steps = Some(7);
    assert_eq!(train.total_steps(100), 7);
    Ok(())
}

#[test]
fn none_unsets_what_may_be_left_out() -> Result<()> {
    let config = Config::load(Some("demo"), &["generator.width=none".into()])?;
    assert_eq!(config.generator.width(), 256);
    assert!(refusal(sets(&["quantizer.steps=none"])).contains("quantizer.steps"));
    Ok(())
}

#[test]
fn an_unknown_name_comes_with_its_nearest() {
    for (set, hint) in [
        ("generator.depht=3", "`generator.depth`"),
        ("quantiser.steps=3", "`quantizer`"),
        ("tokenizer.steps=3", "`quantizer.steps`"),
        ("generator.zzz=3", "keys of [generator]: depth"),
    ] {
        let text = refusal(sets(&[set]));
        assert!(text.contains(hint) && text.contains(set), "{text}");
    }
    let text = refusal(Config::from_toml("[quantizer]\nstepz = 3"));
    assert!(text.contains("`quantizer.steps`"), "{text}");
    let text = refusal(Config::load(Some("smok"), &[]));
    assert!(text.contains("did you mean the preset `smoke`"), "{text}");
}

#[test]
fn a_value_of_the_wrong_kind_is_named() {
    for (set, words) in [
        (
            "quantizer.steps=ten",
            "expected a whole number of at least 0, found \"ten\"",
        ),
        (
            "quantizer.steps=-1",
            "expected a whole number of at least 0, found -1",
        ),
        ("quantizer.steps=2.5", "found 2.5"),
        (
            "schedule.kind=cos",
            "expected one of `pow`, `linear`, `sin`, `logit`",
        ),
        ("data.flip=maybe", "expected true or false"),
        (
            "tokenizer.ch_mult=a,b",
            "`tokenizer.ch_mult`: expected a list of numbers",
        ),
        ("train_vae.betas=[0.5]", "`train_vae.betas"),
        ("quantizer=3", "names no section"),
        ("quantizer.steps", "there is no `=`"),
    ] {
        let text = refusal(sets(&[set]));
        assert!(text.contains(words), "{set}: {text}");
    }
    let text = refusal(Config::from_toml("quantizer = 3"));
    assert!(text.contains("[quantizer]"), "{text}");
    let text = refusal(Config::from_toml("[quantizer\nsteps = 3"));
    assert!(text.contains("line 1"), "{text}");
}

#[test]
fn what_cannot_be_trained_is_refused_with_the_key() {
    for (change, key) in [
        (vec!["quantizer.steps=0"], "quantizer.steps"),
        (vec!["schedule.phi=0"], "schedule.phi"),
        (vec!["schedule.phi=1.5"], "schedule.phi"),
        (vec!["data.image_size=250"], "data.image_size"),
        (vec!["tokenizer.ch=48"], "tokenizer.norm_groups"),
        (vec!["tokenizer.ch_mult=[]"], "tokenizer.ch_mult"),
        (vec!["generator.heads=7"], "generator.heads"),
        (
            vec!["generator.width=36", "generator.heads=12"],
            "generator.width",
        ),
        (
            vec![
                "generator.width=24",
                "generator.heads=4",
                "generator.rope=2d",
            ],
            "generator.width",
        ),
        (vec!["generator.head_init=codebook"], "generator.mix_dim"),
        (vec!["generator.adaln_rank=12"], "generator.adaln_rank"),
        (vec!["generator.adaln_rank=1024"], "generator.adaln_rank"),
        (vec!["train_vae.accumulate=3"], "train_vae.accumulate"),
        (vec!["train_gen.lr=nan"], "train_gen.lr"),
        (
            vec!["train_gen.recompute_blocks=1"],
            "train_gen.recompute_blocks",
        ),
        (
            vec![
                "train_gen.compute_type=bf16",
                "train_gen.recompute_blocks=13",
            ],
            "train_gen.recompute_blocks",
        ),
        (
            vec!["train_vae.recompute_blocks=1"],
            "train_vae.recompute_blocks",
        ),
        (
            vec!["train_vae.recompute_levels=6"],
            "train_vae.recompute_levels",
        ),
        (
            vec!["train_gen.recompute_levels=1"],
            "train_gen.recompute_levels",
        ),
        // In f32 the first is 0, and the inverse of the second is 0.
        (vec!["sample.temperature=1e-46"], "sample.temperature"),
        (vec!["sample.temperature=1e39"], "sample.temperature"),
        (vec!["train_gen.epochs=none"], "train_gen.steps"),
        (vec!["generator.label_dropout=1"], "generator.label_dropout"),
        (
            vec!["sample.gumbel=false", "sample.temperature=0.5"],
            "sample.temperature",
        ),
        (
            vec!["data.image_size=16", "loss.disc_layers=3"],
            "loss.disc_layers",
        ),
    ] {
        let text = refusal(sets(&change));
        assert!(text.contains(&format!("`{key}` is")), "{change:?}: {text}");
        assert!(text.contains("hint: it must be"), "{change:?}: {text}");
    }
}

#[test]
fn a_saved_configuration_is_read_back_equal() -> Result<()> {
    for (name, _) in PRESETS {
        let config = Config::load(Some(name), &[])?;
        assert_eq!(Config::from_toml(&config.to_toml()?)?, config, "{name}");
        assert_eq!(Config::from_json(&config.to_json()?)?, config, "{name}");
    }
    Ok(())
}

#[test]
fn the_paper_presets_are_the_defaults() -> Result<()> {
    let with_depth = |depth| {
        let mut config = Config::default();
        config.generator.depth = depth;
        config
    };
    for (name, depth) in [
        ("imagenet256-vae", 12),
        ("imagenet256-d12", 12),
        ("imagenet256-d16", 16),
        ("imagenet256-d20", 20),
    ] {
        assert_eq!(Config::load(Some(name), &[])?, with_depth(depth), "{name}");
    }
    Ok(())
}

/// The keys in a file, and whether each has a comment; with `commented`, `# key = …` counts as a
/// key.
fn keys_of(text: &str, commented: bool) -> Vec<(String, bool)> {
    let (mut section, mut before, mut found) = ("", "", Vec::new());
    for line in text.lines() {
        let bare = if commented {
            line.trim_start_matches("# ")
        } else {
            line
        };
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, _)) = bare.split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            found.push((format!("{section}.{key}"), before.starts_with("# ")));
        }
        before = line;
    }
    found
}

#[test]
fn every_key_is_documented() -> Result<()> {
    for (name, text) in PRESETS {
        for (key, explained) in keys_of(text, false) {
            assert!(explained, "{name}: {key} has no comment");
        }
    }
    let reference = keys_of(include_str!("../../configs/imagenet256-vae.toml"), true);
    for (section, keys) in &layers::schema()? {
        for key in keys.as_table().expect("a section is a table").keys() {
            let key = format!("{section}.{key}");
            assert!(
                reference.contains(&(key.clone(), true)),
                "imagenet256-vae.toml does not document {key}"
            );
        }
    }
    Ok(())
}

/// serde knows every field; the schema that detects unknown keys must have the same ones.
#[test]
fn the_schema_has_every_field() -> Result<()> {
    let schema = layers::schema()?;
    for (section, keys) in &schema {
        let mut broken = toml::Table::try_from(Config::default())?;
        broken[section]
            .as_table_mut()
            .expect("a section is a table")
            .insert("no_such_key".into(), 1.into());
        let message = broken.try_into::<Config>().unwrap_err().to_string();
        let known = keys.as_table().expect("a section is a table");
        let (_, fields) = message
            .split_once("expected")
            .expect("serde lists the fields");
        let fields: Vec<&str> = fields
            .split('`')
            .skip(1)
            .step_by(2)
            .take(known.len() + 1)
            .collect();
        for field in fields
            .iter()
            .filter(|f| !f.contains('.') && **f != section.as_str())
        {
            assert!(
                known.contains_key(*field),
                "{section}.{field} is not in the schema"
            );
        }
    }
    Ok(())
}
