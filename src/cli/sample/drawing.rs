//! How codes are drawn: guidance, temperature, top-k, top-p, Gumbel noise.

use crate::config::{CfgSchedule, SampleConfig, is_temperature};
use crate::error::{Error, Result, usage};
use crate::sample::{Impossible, SampleOptions, Wishes};
use crate::telemetry::shell;

/// How codes are drawn; an option that is left out keeps the model's setting.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Drawing")]
pub struct DrawingArgs {
    /// Guidance: the paper's λ. 0 is off; DiT's and LlamaGen's scale is 1 + λ
    #[arg(long, value_name = "λ", allow_negative_numbers = true)]
    cfg: Option<f64>,
    /// How λ changes over the steps: constant, or rising linearly from 0 at the first step to λ at
    /// the last
    #[arg(long, value_enum)]
    cfg_schedule: Option<CfgSchedule>,
    /// Divides the logits: below 1 is less random, above 1 more
    #[arg(
        long,
        value_name = "X",
        conflicts_with = "tau",
        allow_negative_numbers = true
    )]
    temperature: Option<f64>,
    /// The paper's τ = 1 / temperature
    #[arg(long, value_name = "τ", allow_negative_numbers = true)]
    tau: Option<f64>,
    /// Sample codes (Gumbel noise) …
    #[arg(long, overrides_with = "no_gumbel")]
    gumbel: bool,
    /// … or always take the most likely code
    #[arg(long)]
    no_gumbel: bool,
    /// Sample from the K most likely codes only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the smallest set of most likely codes whose probabilities sum to P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
}

impl DrawingArgs {
    /// The first drawing option that was given, if any.
    pub fn given(&self) -> Option<&'static str> {
        let all = [
            ("--cfg", self.cfg.is_some()),
            ("--cfg-schedule", self.cfg_schedule.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--tau", self.tau.is_some()),
            ("--gumbel", self.gumbel),
            ("--no-gumbel", self.no_gumbel),
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
        ];
        all.iter().find(|(_, given)| *given).map(|(flag, _)| *flag)
    }

    /// The model's settings, overridden by these. Order: guidance, temperature, top-k, top-p,
    /// Gumbel.
    ///
    /// Errors: a value out of range; an option that has no meaning without Gumbel noise.
    pub fn options(&self, model: &SampleConfig) -> Result<SampleOptions> {
        let reciprocal = match self.tau {
            Some(tau) if !is_temperature(tau) => return Err(out_of_range("--tau", tau, "above 0")),
            tau => tau.map(|tau| 1.0 / tau),
        };
        let wishes = Wishes {
            cfg: self.cfg,
            cfg_schedule: self.cfg_schedule,
            temperature: self.temperature.or(reciprocal),
            gumbel: match (self.gumbel, self.no_gumbel) {
                (true, _) => Some(true),
                (false, true) => Some(false),
                (false, false) => None,
            },
            top_k: self.top_k,
            top_p: self.top_p,
        };
        let flag = |name: &str| match name {
            "temperature" if self.tau.is_some() => "--tau".to_string(),
            name => format!("--{}", name.replace('_', "-")),
        };
        wishes.over(model).map_err(|impossible| match impossible {
            Impossible::OutOfRange {
                name,
                value,
                allowed,
            } => out_of_range(&flag(name), value, allowed),
            Impossible::WithoutGumbel { name } => {
                let flag = flag(name);
                usage(
                    format!(
                        "{flag} has no meaning without Gumbel noise: the most likely code is taken"
                    ),
                    format!("leave out {flag}, or draw with --gumbel"),
                )
            }
        })
    }
}

fn out_of_range(flag: &str, value: f64, allowed: &str) -> Error {
    usage(
        format!("{flag} {}: out of range", shell::number(value)),
        format!("allowed: {allowed}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DrawingArgs,
    }

    fn options(line: &str) -> Result<SampleOptions> {
        let words = ["rdpm"].into_iter().chain(line.split_whitespace());
        Line::parse_from(words)
            .args
            .options(&SampleConfig::default())
    }

    #[test]
    fn what_is_left_out_is_the_models_own() -> Result<()> {
        let own = SampleOptions::from(&SampleConfig::default());
        assert_eq!(options("")?, own);
        assert_eq!(options("--no-gumbel --gumbel")?, own);
        let asked = options("--cfg 0 --cfg-schedule constant --tau 2 --top-k 5 --top-p 0.9")?;
        assert_eq!(
            asked,
            SampleOptions {
                cfg: 0.0,
                cfg_schedule: CfgSchedule::Constant,
                temperature: 0.5,
                gumbel: true,
                top_k: Some(5),
                top_p: Some(0.9),
            }
        );
        Ok(())
    }

    #[test]
    fn what_has_no_meaning_is_a_usage_error() {
        for line in [
            "--no-gumbel --top-k 5",
            "--no-gumbel --top-p 0.5",
            "--no-gumbel --temperature 0.5",
            "--no-gumbel --tau 2",
            "--cfg=-1",
            "--cfg NaN",
            "--cfg 1e300",
            "--temperature 0",
            "--tau inf",
            "--top-k 0",
            "--top-p 1.5",
        ] {
            let (text, code) = report(&options(line).expect_err(line));
            assert_eq!(code, 2, "{line}: {text}");
        }
        let (text, _) = report(&options("--cfg 1e300").expect_err("too large"));
        assert!(text.contains("--cfg 1e300: out of range"), "{text}");
        let both = ["rdpm", "--tau", "1", "--temperature", "1"];
        assert!(Line::try_parse_from(both).is_err());
    }
}
