//! DINOv2 and CLIP compared with `transformers`, with small random weights: images of any size in,
//! features out.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rdpm::error::Result;
use rdpm::metrics::{FeatureNetwork, clip, dinov2};

use crate::fixture::Golden;
use crate::pictures::formula;

/// The features of images of these `sizes`, as a matrix.
fn features(network: &impl FeatureNetwork, sizes: [(u32, u32); 2]) -> Result<Tensor> {
    let pictures = sizes.map(|(w, h)| formula(w, h));
    let rows = network.features(&pictures)?.remove(0);
    let alone = network.features(&pictures[1..])?.remove(0);
    assert_eq!(
        alone.values,
        rows.values[rows.width..],
        "a row depends on the batch"
    );
    Ok(Tensor::from_vec(
        rows.values,
        (2, rows.width),
        &Device::Cpu,
    )?)
}

#[test]
fn dinov2_gives_the_class_tokens_of_transformers() -> Result<()> {
    let golden = Golden::open("dinov2")?;
    for patches in [37, 16] {
        let config = dinov2::Config {
            width: 24,
            depth: 2,
            heads: 2,
            trained: 37,
            patches,
        };
        let network = dinov2::DinoV2::new(config, &golden.under("weights"), &Device::Cpu)?;
        if patches == 16 {
            golden.check("positions_224", network.positions())?;
        }
        let found = features(&network, [(60, 44), (33, 700)])?;
        golden.check(&format!("class_token_{}", 14 * patches), &found)?;
    }
    Ok(())
}

#[test]
fn clip_gives_the_projected_features_of_transformers_by_either_names() -> Result<()> {
    let golden = Golden::open("clip")?;
    let config = clip::Config {
        width: 16,
        depth: 2,
        heads: 2,
        features: 8,
        side: 224,
    };
    let ours = golden.under("weights");
    let mut original = golden.under("original");
    let patches = ours["vision_model.embeddings.patch_embedding.weight"].clone();
    original.insert("visual.conv1.weight".into(), patches);
    for weights in [&ours, &original] {
        let network = clip::Clip::new(config, weights, &Device::Cpu)?;
        golden.check("features", &features(&network, [(60, 44), (331, 700)])?)?;
    }
    // candle-transformers would draw it at random.
    let without = |name: &str| -> BTreeMap<String, Tensor> {
        let mut weights = ours.clone();
        weights.remove(name).expect("a known name");
        weights
    };
    let class = "vision_model.embeddings.class_embedding";
    let error = clip::Clip::new(config, &without(class), &Device::Cpu).err();
    assert!(error.expect("an error").to_string().contains(class));
    Ok(())
}
