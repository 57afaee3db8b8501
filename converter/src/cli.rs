//! The command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use formats::blocks::{BlockType, Effort, RowError, UnknownBlockType};
use regex::Regex;

use crate::plan::PlanError;
use crate::plan::flags::{PlanArgs, PlanFlags};
use crate::recipe::{Bits, Spending, TensorRule};
use crate::{convert, inspect, one_line, plan, verify};

/// Cuts a Llama model between two layers: a low-bit edge half and a high-bit cloud half.
///
/// Writes STEM-sNeBcC-00001-of-00002.gguf (edge) and …-00002-of-00002.gguf (cloud). Each runs
/// alone in splitrun; llama.cpp loads both from the first.
#[derive(Debug, Parser)]
#[command(
    name = "splitconv",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    convert: ConvertArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows what a model holds, and what the halves would weigh at each cut
    Inspect(InspectArgs),
    /// Finds the best cut, bits, codec and context for two hosts and what lies between them
    Plan(Box<PlanArgs>),
    /// Checks digests, contract, and whether two files are one pair
    Verify(VerifyArgs),
}

/// Arguments of a conversion.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // switches of a command line are what they are
pub struct ConvertArgs {
    /// The model: a GGUF file (or any shard of one), or a folder in the Hugging Face layout
    #[arg(value_name = "MODEL", required = true)]
    pub model: Option<PathBuf>,
    /// Layers on the edge; the rest goes to the cloud
    #[arg(long, value_name = "N", required_unless_present = "auto")]
    pub split: Option<u32>,
    /// Plan first, with the flags of `splitconv plan`, and write the best pair
    #[arg(long, conflicts_with_all = ["split", "edge_bits", "cloud_bits", "edge_type", "cloud_type", "tensor_type", "recipe", "edge_budget"])]
    pub auto: bool,
    /// Bits per weight of the edge's layers: 2, 3, 4, 5, 6, 8, 16, 32 [default: 4]
    #[arg(long, value_name = "BITS")]
    pub edge_bits: Option<Bits>,
    /// Bits per weight of the cloud's layers [default: 8]
    #[arg(long, value_name = "BITS")]
    pub cloud_bits: Option<Bits>,
    /// Block type of every matrix on the edge, as Q4_K
    #[arg(long, value_name = "TYPE", value_parser = block_type)]
    pub edge_type: Option<BlockType>,
    /// Block type of every matrix in the cloud
    #[arg(long, value_name = "TYPE", value_parser = block_type)]
    pub cloud_type: Option<BlockType>,
    /// Block type of the matrices whose name matches a regular expression; the last match wins
    #[arg(long, value_name = "REGEX=TYPE", value_parser = tensor_rule)]
    pub tensor_type: Vec<TensorRule>,
    /// How long to search for the encoding that errs least: normal, high
    #[arg(long, value_name = "EFFORT", default_value_t)]
    pub effort: Effort,
    /// Importance matrix: of `splitrun calibrate`, or of llama-imatrix (GGUF or .dat)
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// How a half's bits are spent: `auto` gives matrices that need it more, and others less;
    /// `flat` gives all the same type
    #[arg(long, value_enum, value_name = "RECIPE", default_value_t)]
    pub recipe: Spending,
    /// Bits per weight that the edge's layers may cost together, instead of those of the type
    /// that --edge-bits names
    #[arg(long, value_name = "BPW", value_parser = budget, conflicts_with = "edge_type")]
    pub edge_budget: Option<f64>,
    /// Folder for the two files, made if need be [default: the working directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace files that are there
    #[arg(long)]
    pub force: bool,
    /// Forget what an interrupted run has finished, and start over
    #[arg(long)]
    pub fresh: bool,
    /// Show what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Threads [default: all cores]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// With `--auto`.
    #[command(flatten)]
    pub plan: PlanFlags,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A GGUF file, any shard of one, a half of a pair, or a folder in the Hugging Face layout
    pub file: PathBuf,
    /// Also what a cut would weigh with these bits on the edge [default with --cloud-bits: 4]
    #[arg(long, value_name = "BITS")]
    pub edge_bits: Option<Bits>,
    /// Also what a cut would weigh with these bits in the cloud [default with --edge-bits: 8]
    #[arg(long, value_name = "BITS")]
    pub cloud_bits: Option<Bits>,
    /// Metadata and tensors, too
    #[arg(long)]
    pub all: bool,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Files of a pair; a folder or the beginning of a pair's names stands for both
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

fn budget(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(bits) if (1.0..=32.0).contains(&bits) => Ok(bits),
        _ => Err("expected a number of bits per weight from 1 to 32, as 3.6".into()),
    }
}

fn tensor_rule(text: &str) -> Result<TensorRule, String> {
    // The type has no `=`, the expression may have.
    let (pattern, ty) = text
        .rsplit_once('=')
        .ok_or("expected REGEX=TYPE, as 'ffn_down=Q6_K'")?;
    Ok(TensorRule {
        pattern: Regex::new(pattern).map_err(|e| e.to_string())?,
        block_type: block_type(ty)?,
    })
}

/// A type that can be written.
fn block_type(text: &str) -> Result<BlockType, String> {
    let ty: BlockType = text.parse().map_err(|e: UnknownBlockType| e.to_string())?;
    if ty.can_encode() {
        Ok(ty)
    } else {
        Err(RowError::NoEncoder { ty }.to_string())
    }
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        None => convert::run(&cli.convert),
        Some(Command::Inspect(args)) => inspect::run(args),
        Some(Command::Plan(args)) => plan::run(args),
        Some(Command::Verify(args)) => verify::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = one_line(error.as_ref());
            // When nobody reads it, the exit code still says it.
            let _ = writeln!(std::io::stderr(), "splitconv: error: {line}");
            match error.downcast_ref() {
                Some(PlanError::Usage(_)) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn as_typed() {
        let cli = parse("splitconv llama2-13b.gguf --split 10 --edge-bits 3").unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.convert.model, Some("llama2-13b.gguf".into()));
        assert_eq!(cli.convert.split, Some(10));
        assert_eq!(cli.convert.edge_bits.map(Bits::get), Some(3));
        assert!(parse("splitconv --edge-bits 3 --split 10 m.gguf").is_ok());
        assert_eq!(cli.convert.effort, Effort::Normal);
        let cli = parse("splitconv m.gguf --split 1 --effort high").unwrap();
        assert_eq!(cli.convert.effort, Effort::High);
        let cli = parse("splitconv inspect m.gguf").unwrap();
        assert!(matches!(cli.command, Some(Command::Inspect(_))));
        let cli = parse("splitconv ./inspect --split 1").unwrap();
        assert_eq!(cli.convert.model, Some("./inspect".into()));
        assert!(parse("splitconv verify a b --json").is_ok());
        let line =
            "splitconv m --split 1 --edge-type q4_0 --tensor-type a=b=Q6_K --tensor-type x=f16";
        let cli = parse(line).unwrap();
        let rules = &cli.convert.tensor_type;
        assert_eq!(rules[0].pattern.as_str(), "a=b");
        assert_eq!(rules[1].block_type, BlockType::F16);
    }

    #[test]
    fn wrong_usage() {
        for line in [
            "splitconv",
            "splitconv m.gguf",
            "splitconv --split 3",
            "splitconv m.gguf --split x",
            "splitconv m.gguf --split -1",
            "splitconv m.gguf --split 1 --edge-bits 7",
            "splitconv m.gguf --split 1 --edge-type Q9",
            "splitconv m.gguf --split 1 --effort huge",
            "splitconv m.gguf --split 1 --edge-type IQ2_XS",
            "splitconv m.gguf --split 1 --tensor-type ffn=IQ1_S",
            "splitconv m.gguf --split 1 --tensor-type ffn",
            "splitconv m.gguf --split 1 --tensor-type (=Q8_0",
            "splitconv m.gguf --split 1 -t 0",
            "splitconv verify",
            "splitconv inspect",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        let e = parse("splitconv m.gguf --split 1 --edge-type iq2_xs").unwrap_err();
        let said = e.to_string();
        assert!(
            said.contains("IQ2_XS can be read but not written"),
            "{said}"
        );
        assert!(said.contains("IQ3_S Q3_K IQ4_XS"), "{said}");
    }
}
