//! Names of tensors as other programs write them: removes what wrappers add to a name.
//!
//! DataParallel adds `module.`, torch.compile `_orig_mod.`; FSDP and activation checkpointing add
//! parts in the middle; Lightning and latent diffusion add the attribute that holds the model
//! (`model.`, `first_stage_model.`).

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

/// Parts that a wrapper adds anywhere in a name.
const WRAPPERS: [&str; 4] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
];

/// First parts that only say that a model follows.
const HOLDERS: [&str; 7] = [
    "module",
    "model",
    "net",
    "network",
    "state_dict",
    "model_state_dict",
    "student",
];

/// `tensors` under their own names: without wrappers, and without a first part that all names share
/// and that only says that a model follows.
pub fn bare(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let mut tensors = unwrapped(tensors);
    while let Some(holder) = HOLDERS.iter().find(|holder| {
        let under = |name: &String| behind(name, holder).is_some();
        !tensors.is_empty() && tensors.keys().all(under)
    }) {
        tensors = tensors
            .into_iter()
            .filter_map(|(name, tensor)| Some((behind(&name, holder)?.to_string(), tensor)))
            .collect();
    }
    tensors
}

fn behind<'a>(name: &'a str, first: &str) -> Option<&'a str> {
    name.strip_prefix(first)?.strip_prefix('.')
}

fn unwrapped(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let name = |name: &str| {
        let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
        parts.collect::<Vec<_>>().join(".")
    };
    tensors
        .into_iter()
        .map(|(wrapped, tensor)| (name(&wrapped), tensor))
        .collect()
}

/// The tensors of a file that match a model's names.
pub struct Matched {
    /// The prefix of the model's names in the file, with its dot; usually empty.
    pub prefix: String,
    /// Other prefixes that match as many of the model's names.
    pub others: Vec<String>,
    /// Keyed by the model's names.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Finds the prefix under which `tensors` has most of `wanted`, after removing wrappers.
pub fn matched<'a>(
    tensors: &BTreeMap<String, Tensor>,
    wanted: impl IntoIterator<Item = &'a str>,
) -> Matched {
    let tensors = unwrapped(tensors.clone());
    let wanted: BTreeSet<&str> = wanted.into_iter().collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in tensors.keys() {
        let starts = [0]
            .into_iter()
            .chain(name.match_indices('.').map(|(dot, _)| dot + 1));
        for start in starts.filter(|&start| wanted.contains(&name[start..])) {
            *counts.entry(&name[..start]).or_default() += 1;
        }
    }
    let most = counts.values().copied().max().unwrap_or(0);
    let mut best: Vec<&str> = counts
        .into_iter()
        .filter_map(|(prefix, count)| (count == most).then_some(prefix))
        .collect();
    best.sort_by_key(|prefix| (prefix.len(), *prefix));
    let mut best = best.into_iter().map(str::to_string);
    let prefix = best.next().unwrap_or_default();
    let found = wanted.iter().filter_map(|name| {
        let tensor = tensors.get(&format!("{prefix}{name}"))?;
        Some((name.to_string(), tensor.clone()))
    });
    Matched {
        tensors: found.collect(),
        prefix,
        others: best.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Result};

    fn named(names: &[&str]) -> Result<BTreeMap<String, Tensor>> {
        let tensor = |name: &&str| {
            let tensor = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
            Ok((name.to_string(), tensor))
        };
        names.iter().map(tensor).collect()
    }

    fn keys(tensors: &BTreeMap<String, Tensor>) -> Vec<&str> {
        tensors.keys().map(String::as_str).collect()
    }

    #[test]
    fn wrappers_and_holders_go_and_a_networks_own_parts_stay() -> Result<()> {
        for (found, expected) in [
            (
                ["module.features.0.weight", "module.features.0.bias"],
                ["features.0.bias", "features.0.weight"],
            ),
            (
                ["_orig_mod.module.a.w", "_orig_mod.module.b.w"],
                ["a.w", "b.w"],
            ),
            (
                ["module._orig_mod.a.w", "module._orig_mod.b.w"],
                ["a.w", "b.w"],
            ),
            (
                ["model.a._orig_mod.w", "model.b._fsdp_wrapped_module.w"],
                ["a.w", "b.w"],
            ),
            // Parts of the network's own names: not all share them, or they say more than that a
            // model follows.
            (["model.a.w", "head.w"], ["head.w", "model.a.w"]),
            (
                ["features.0.w", "features.1.w"],
                ["features.0.w", "features.1.w"],
            ),
            (
                ["lin0.model.1.weight", "lin1.model.1.weight"],
                ["lin0.model.1.weight", "lin1.model.1.weight"],
            ),
        ] {
            assert_eq!(keys(&bare(named(&found)?)), expected);
        }
        Ok(())
    }

    #[test]
    fn a_model_is_found_behind_whatever_prefix_holds_most_of_it() -> Result<()> {
        let wanted = ["encoder.conv.weight", "encoder.conv.bias", "quant.weight"];
        for prefix in [
            "",
            "module.",
            "tokenizer.",
            "first_stage_model.",
            "module._orig_mod.vqgan.",
        ] {
            let names: Vec<String> = wanted
                .iter()
                .map(|name| format!("{prefix}{name}"))
                .collect();
            let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
            names.extend(["optimizer.quant.weight", "loss.w"]);
            let found = matched(&named(&names)?, wanted);
            assert_eq!(found.tensors.len(), 3, "{prefix}");
            assert_eq!(found.prefix, prefix.replace("_orig_mod.", ""));
            assert!(found.others.is_empty());
        }
        let both = named(&["ema.quant.weight", "model.quant.weight"])?;
        let found = matched(&both, wanted);
        assert_eq!(
            (found.prefix.as_str(), &found.others[..]),
            ("ema.", &["model.".to_string()][..])
        );
        // The end of a longer part is a different name.
        assert!(
            matched(&named(&["post_quant.weight"])?, wanted)
                .tensors
                .is_empty()
        );
        Ok(())
    }
}
