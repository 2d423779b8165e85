//! The generator: condition, logits, gradients, the head initialised from a codebook.

use rdpm::error::Result;
use rdpm::model::Generator;
use rdpm::ops::cross_entropy;
use rdpm::store::Params;

use crate::fixture::Golden;

pub fn build(golden: &Golden) -> Result<(Generator, Params)> {
    let config = golden.config()?;
    let classes = config.generator.classes.expect("the file says it");
    golden.build(|scope| Generator::new(&config, classes, scope))
}

/// The paper's generator; 2-D RoPE, a learned position and the wide mix; modulations of low rank.
const FILES: [&str; 3] = ["generator", "generator_options", "generator_low_rank"];

#[test]
fn condition_and_logits_and_every_gradient_are_those_of_pytorch() -> Result<()> {
    for name in FILES {
        let golden = Golden::open(name)?;
        let (generator, params) = build(&golden)?;
        let condition = generator.condition(&golden.index("labels")?, &golden.index("t")?)?;
        golden.check("condition", &condition)?;
        let logits = generator.forward(&golden.map("noise")?, &golden.map("sum")?, &condition)?;
        golden.check("logits", &logits)?;
        let codes = golden.index("codes")?.flatten_all()?;
        let loss = cross_entropy(&logits.flatten_to(1)?, &codes)?
            .loss
            .mean_all()?;
        golden.check("loss", &loss)?;
        golden.check_grads(&params, &loss.backward()?)?;
    }
    Ok(())
}

#[test]
fn the_head_from_a_codebook_is_that_of_pytorch() -> Result<()> {
    let golden = Golden::open("generator_options")?;
    let (generator, params) = build(&golden)?;
    generator.head_from_codebook(&golden.get("codebook"), 3.0)?;
    for (name, expected) in golden.under("from_codebook") {
        let found = params.get(&name).expect("the head's parameters");
        golden.check_against(&name, found.as_tensor(), &expected)?;
    }
    Ok(())
}

#[test]
fn the_head_from_a_codebook_is_refused_where_noise_and_sum_are_not_apart() -> Result<()> {
    let (generator, _) = build(&Golden::open("generator")?)?;
    let codebook = Golden::open("generator_options")?.get("codebook");
    let error = generator.head_from_codebook(&codebook, 3.0).unwrap_err();
    assert!(error.to_string().contains("generator.mix_dim"), "{error}");
    Ok(())
}
