//! From a `--model` argument to files that fit the role.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::gguf::{Gguf, GgufSet, Metadata};
use formats::pair::{Contract, HalfInfo, HalfRole, Located, locate};
use formats::wire::CutStatistics;

use super::error::RunError;
use crate::model::{ModelError, ModelPart};

/// One half, opened.
#[derive(Debug)]
pub struct HalfFile {
    /// The file.
    pub path: PathBuf,
    /// Which half.
    pub role: HalfRole,
    /// What the other half must agree with.
    pub contract: Contract,
    /// Its layers and tensors.
    pub part: ModelPart,
    /// What calibration knows of the rows at the cut, the same in both halves.
    pub boundary: Option<CutStatistics>,
    /// Its metadata lives here.
    pub set: Arc<GgufSet>,
}

/// A whole model, in one piece or two.
#[derive(Debug)]
pub enum OpenedModel {
    /// An ordinary GGUF.
    Whole {
        /// The (first) file.
        path: PathBuf,
        /// All layers.
        part: Box<ModelPart>,
        /// Its metadata lives here.
        set: Arc<GgufSet>,
    },
    /// Both halves of a pair.
    Pair {
        /// The front.
        edge: Box<HalfFile>,
        /// The back.
        cloud: Box<HalfFile>,
    },
}

impl OpenedModel {
    /// The metadata, the same in both halves.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Whole { set, .. } => set.metadata(),
            Self::Pair { edge, .. } => edge.set.metadata(),
        }
    }
}

fn wrong(path: &Path, why: impl Into<String>) -> RunError {
    RunError::WrongFile {
        path: path.to_owned(),
        why: why.into(),
    }
}

fn half_info(path: &Path, file: &Gguf) -> Result<Option<HalfInfo>, RunError> {
    HalfInfo::from_metadata(file.metadata()).map_err(|source| RunError::Pair {
        path: path.to_owned(),
        source,
    })
}

/// Opens one file as the half `role`.
fn open_file_as(path: &Path, role: HalfRole) -> Result<HalfFile, RunError> {
    let file = Gguf::open(path)?;
    let Some(info) = half_info(path, &file)? else {
        return Err(wrong(
            path,
            format!(
                "it is an unsplit model, which --role {role} cannot run; cut it with \
                 `splitconv {} --split N --edge-bits B`, or run it whole with --role both",
                path.display()
            ),
        ));
    };
    if info.role != role {
        return Err(wrong(
            path,
            format!(
                "it is the {} half, --role {role} needs the other file of the pair",
                info.role
            ),
        ));
    }
    let set = Arc::new(GgufSet::from_files(vec![file])?);
    let layers = info.first_layer as usize..info.end_layer as usize;
    let part = ModelPart::load(&set, layers)?;
    let c = info.contract;
    if c.n_layer as usize != part.hparams.n_layer || c.width as usize != part.hparams.n_embd {
        return Err(ModelError::Unsupported {
            path: path.to_owned(),
            what: format!(
                "a contract of {} layers and width {} over a model of {} layers and width {}",
                c.n_layer, c.width, part.hparams.n_layer, part.hparams.n_embd
            ),
        }
        .into());
    }
    let fits = |b: &CutStatistics| b.channels(c.width as usize).is_some();
    if info.boundary.as_ref().is_some_and(|b| !fits(b)) {
        return Err(wrong(
            path,
            format!(
                "its statistics of the cut are not of rows of {}: the file is damaged; convert again",
                c.width
            ),
        ));
    }
    Ok(HalfFile {
        path: path.to_owned(),
        role,
        contract: c,
        boundary: info.boundary,
        part,
        set,
    })
}

fn cwd() -> PathBuf {
    PathBuf::from(".")
}

/// The half that `role` runs. Only its own file is opened: a device need not hold the other.
///
/// # Errors
/// When the file is missing, ambiguous, unsplit, the other half, or damaged.
pub fn open_half(model: Option<&Path>, role: HalfRole) -> Result<HalfFile, RunError> {
    match locate(model, &base(model))? {
        Located::Pair {
            prefix,
            edge,
            cloud,
        } => {
            let (mine, other) = match role {
                HalfRole::Edge => (edge, cloud),
                HalfRole::Cloud => (cloud, edge),
            };
            match (mine, other) {
                (Some(path), _) => open_file_as(&path, role),
                (None, Some(path)) => Err(wrong(
                    &path,
                    format!("only this half of `{prefix}` is here; --role {role} needs the other"),
                )),
                (None, None) => Err(RunError::Request(format!("no file of `{prefix}` is here"))),
            }
        }
        Located::Single(path) => open_file_as(&path, role),
    }
}

/// A relative argument is taken as it stands, so that messages show what the user typed.
fn base(model: Option<&Path>) -> PathBuf {
    if model.is_some() {
        PathBuf::new()
    } else {
        cwd()
    }
}

/// A whole model: an ordinary GGUF (all its shards), or both halves of a pair.
///
/// # Errors
/// When a file is missing or damaged, or the halves are of different pairs.
pub fn open_model(model: Option<&Path>) -> Result<OpenedModel, RunError> {
    let (edge, cloud) = match locate(model, &base(model))? {
        Located::Single(path) => {
            if let Some(info) = half_info(&path, &Gguf::open(&path)?)? {
                return Err(wrong(
                    &path,
                    format!(
                        "it is a renamed {} half; give both halves their names back",
                        info.role
                    ),
                ));
            }
            let set = Arc::new(GgufSet::open(&path)?);
            let n = crate::model::read_hparams(&set)?.n_layer;
            let part = Box::new(ModelPart::load(&set, 0..n)?);
            return Ok(OpenedModel::Whole { path, part, set });
        }
        Located::Pair {
            edge: Some(edge),
            cloud: Some(cloud),
            ..
        } => (edge, cloud),
        Located::Pair {
            prefix,
            edge,
            cloud,
        } => {
            let path = edge.or(cloud).unwrap_or_else(|| prefix.clone().into());
            return Err(wrong(
                &path,
                format!("the other half of `{prefix}` is not beside it"),
            ));
        }
    };
    let edge = Box::new(open_file_as(&edge, HalfRole::Edge)?);
    let cloud = Box::new(open_file_as(&cloud, HalfRole::Cloud)?);
    edge.contract
        .check(&cloud.contract)
        .map_err(|source| RunError::Mismatch {
            edge: edge.path.clone(),
            cloud: cloud.path.clone(),
            source,
        })?;
    Ok(OpenedModel::Pair { edge, cloud })
}

/// The metadata of any file of a model: for what needs the vocabulary only.
///
/// # Errors
/// When there is no such file or it is damaged.
pub fn read_metadata(model: Option<&Path>) -> Result<Metadata, RunError> {
    let path = match locate(model, &base(model))? {
        Located::Single(path) => path,
        Located::Pair {
            prefix,
            edge,
            cloud,
        } => edge
            .or(cloud)
            .ok_or_else(|| RunError::Request(format!("no file of `{prefix}` is here")))?,
    };
    Ok(Gguf::open(&path)?.metadata().clone())
}
