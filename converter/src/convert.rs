//! A conversion from beginning to end.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use formats::pair::PairName;

use crate::cli::ConvertArgs;
use crate::importance::Importance;
use crate::plan::{self, PlanError};
use crate::printable;
use crate::progress;
use crate::recipe::{self, Bits, Request};
use crate::report::Report;
use crate::source::Source;
use crate::stream::{self, Target};

/// Converts, or with `--dry-run` says what it would do.
///
/// # Errors
/// Whatever stands in the way. No file of the pair has its name then; what is finished may wait
/// under temporary ones, and the error says so.
pub fn run(args: &ConvertArgs) -> Result<(), Box<dyn Error>> {
    // Both are required by the command line; a caller of the library may have left them out.
    let model = args.model.as_deref().ok_or("no model was named")?;
    if let (false, Some(flag)) = (args.auto, args.plan.first_given()) {
        let said = format!(
            "{flag} is for planning: give --auto in place of --split, or use `splitconv plan`"
        );
        return Err(PlanError::Usage(said).into());
    }
    let source = Source::open(model)?;
    let importance = args.imatrix.as_deref().map(Importance::open).transpose()?;
    let (split, edge_bits, cloud_bits) = if args.auto {
        let (split, [edge, cloud]) = planned(args, model, &source, importance.as_ref())?;
        (split, Some(edge), Some(cloud))
    } else {
        let split = args.split.ok_or("no --split was given")?;
        (split, args.edge_bits, args.cloud_bits)
    };
    let bits = |given: Option<Bits>, forced: Option<_>, default| {
        given.unwrap_or_else(|| forced.map_or(default, Bits::nominal))
    };
    let request = Request {
        split,
        edge_bits: bits(edge_bits, args.edge_type, Bits::EDGE),
        cloud_bits: bits(cloud_bits, args.cloud_type, Bits::CLOUD),
        edge_type: args.edge_type,
        cloud_type: args.cloud_type,
        tensor_types: args.tensor_type.clone(),
        effort: args.effort,
        spending: args.recipe,
        edge_budget: args.edge_budget,
    };
    let threads = match args.threads {
        Some(n) => usize::from(n),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let plan = recipe::plan(&source, &request, importance.as_ref(), threads)?;
    let target = Target {
        folder: args.out.clone().unwrap_or_default(),
        name: PairName {
            stem: source.stem(),
            split,
            edge_bits: request.edge_bits.get(),
            cloud_bits: request.cloud_bits.get(),
        },
        force: args.force,
        fresh: args.fresh,
    };
    for note in source.notes().iter().chain(&plan.notes) {
        // A reader that has gone is no reason to fail.
        let _ = writeln!(std::io::stderr(), "splitconv: {}", printable(note));
    }
    if args.dry_run {
        return Report::new(&source, &plan, &target, None).print(args.json);
    }
    progress::stop_on_signals();
    let progress = progress::for_stderr();
    let written = stream::write_pair(&source, &plan, &target, threads, progress.as_ref())?;
    Report::new(&source, &plan, &target, Some(&written)).print(args.json)
}

/// The best choice of a plan; says what it is and how it is run.
fn planned(
    args: &ConvertArgs,
    model: &Path,
    source: &Source,
    importance: Option<&Importance>,
) -> Result<(u32, [Bits; 2]), Box<dyn Error>> {
    let names = plan::Names::new(model, args.imatrix.as_deref());
    let planned = plan::plan(source, importance, &args.plan, &names)?;
    let Some(best) = &planned.answer.best else {
        let why = planned.answer.infeasible.map(|w| w.said);
        return Err(PlanError::Infeasible(why.unwrap_or_default()).into());
    };
    // The table of `plan`, on standard error: what follows is a conversion.
    let _ = std::io::stderr().write_all(plan::text(&planned).as_bytes());
    Ok((
        best.split,
        [Bits::new(best.edge_bits)?, Bits::new(best.cloud_bits)?],
    ))
}
