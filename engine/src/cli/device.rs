//! `--device`: which executor runs a part of a model.

use std::sync::Arc;
use std::time::Instant;

use formats::model::KvType;
use formats::units::Size;

use super::args::{Compute, Device};
use super::{context, note, one_line};
use crate::exec::cpu::{Activations, CpuExecutor, Isa};
use crate::exec::gpu::{Adapter, Gpu, GpuError, GpuExecutor, Variants};
use crate::exec::{ExecError, Executor};
use crate::model::ModelPart;
use crate::role::RunError;

/// Bytes of weights whose copy may take so long that somebody wonders.
const MUCH: usize = 4 << 30;

/// Where to compute, decided once per run.
#[derive(Clone)]
pub(super) struct Place {
    threads: usize,
    isa: Isa,
    activations: Activations,
    kv_type: KvType,
    repack: bool,
    gpu: Option<Arc<Gpu>>,
    /// Whether the processor will do when the device does not.
    fall_back: bool,
}

/// An executor, and the same as what it is.
pub(super) struct Opened {
    pub(super) exec: Arc<dyn Executor>,
    pub(super) cpu: Option<Arc<CpuExecutor>>,
    pub(super) gpu: Option<Arc<GpuExecutor>>,
}

fn gpu_error(e: GpuError) -> RunError {
    RunError::Exec(ExecError::Gpu(e))
}

impl Place {
    /// Follows the flags: `gpu` takes any adapter, `auto` a real one if there is one.
    pub(super) fn open(compute: &Compute) -> Result<Self, RunError> {
        let isa: Isa = compute
            .isa
            .parse()
            .map_err(|e| RunError::Usage(format!("--isa: {e}")))?;
        let variants = match compute.gpu_variants {
            Variants::Auto if compute.exact => Variants::Exact,
            named => named,
        };
        let open = |a: &Adapter| Gpu::open(a, variants).map(Arc::new).map_err(gpu_error);
        let gpu = match compute.device {
            Device::Cpu => None,
            Device::Gpu => Some(open(&Adapter::best(true).map_err(gpu_error)?)?),
            Device::Auto => match Adapter::best(false) {
                Ok(adapter) => open(&adapter)
                    .inspect_err(|e| note(&format!("computing on the CPU: {e}")))
                    .ok(),
                Err(_) => None,
            },
        };
        let gpu = match gpu {
            Some(gpu) if compute.kv_type != KvType::F16 => {
                let (kv_type, name) = (compute.kv_type, &gpu.report().name);
                if compute.device == Device::Gpu {
                    return Err(RunError::Usage(format!(
                        "--kv-type {kv_type}: {name} keeps keys and values in f16; use --device cpu or --kv-type f16"
                    )));
                }
                note(&format!(
                    "computing on the CPU: {name} keeps keys and values in f16, not in {kv_type}"
                ));
                None
            }
            gpu => gpu,
        };
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            threads: compute.threads.map_or_else(cores, usize::from),
            isa,
            activations: if compute.exact {
                Activations::F32
            } else {
                Activations::Int8
            },
            kv_type: compute.kv_type,
            repack: !compute.no_repack,
            gpu,
            fall_back: compute.device == Device::Auto,
        })
    }

    /// The same, with activations as they are: for what measures a model and not a machine.
    pub(super) fn exact(&self) -> Self {
        Self {
            activations: Activations::F32,
            ..self.clone()
        }
    }

    /// The same, exact and with keys and values in f16: for what others are compared to.
    pub(super) fn reference(&self) -> Self {
        Self {
            kv_type: KvType::F16,
            ..self.exact()
        }
    }

    /// An executor for `part`.
    pub(super) fn executor(&self, part: ModelPart) -> Result<Arc<dyn Executor>, RunError> {
        Ok(self.opened(part)?.exec)
    }

    /// An executor for `part`, which may be asked about the device.
    pub(super) fn opened(&self, part: ModelPart) -> Result<Opened, RunError> {
        if let Some(gpu) = &self.gpu {
            let spare = self.fall_back.then(|| part.clone());
            match (GpuExecutor::new(part, Arc::clone(gpu)), spare) {
                (Ok(exec), _) => {
                    let gpu = Arc::new(exec);
                    return Ok(Opened {
                        exec: Arc::clone(&gpu) as Arc<dyn Executor>,
                        cpu: None,
                        gpu: Some(gpu),
                    });
                }
                (Err(e), Some(part)) => {
                    note(&format!("computing on the CPU: {e}"));
                    return self.on_cpu(part);
                }
                (Err(e), _) => return Err(gpu_error(e)),
            }
        }
        self.on_cpu(part)
    }

    fn on_cpu(&self, part: ModelPart) -> Result<Opened, RunError> {
        let cpu = Arc::new(self.cpu(part)?);
        Ok(Opened {
            exec: Arc::clone(&cpu) as Arc<dyn Executor>,
            cpu: Some(cpu),
            gpu: None,
        })
    }

    fn cpu(&self, part: ModelPart) -> Result<CpuExecutor, RunError> {
        let exec = CpuExecutor::new(part, self.threads, self.isa)
            .map_err(RunError::io("starting threads"))?;
        let exec = exec.with_activations(self.activations);
        let mut exec = exec.with_kv_type(self.kv_type)?;
        if self.repack {
            self.lay(&mut exec);
        }
        Ok(exec)
    }

    /// Copies the weights into the order of the kernels, where there is room beside a context of the usual
    /// length.
    fn lay(&self, exec: &mut CpuExecutor) {
        let weights = exec.part().weight_bytes();
        let n_ctx = context(None, exec.hparams());
        let started = Instant::now();
        if self.activations == Activations::Int8 && weights >= MUCH {
            let size = Size(weights as u64);
            note(&format!(
                "copying {size} of weights; --no-repack reads them where they are"
            ));
        }
        match exec.repack(exec.cache_bytes(n_ctx)) {
            Ok(bytes) => tracing::info!(bytes, took = ?started.elapsed(), "weights are laid out"),
            Err(e) => note(&one_line(&e)),
        }
    }

    /// The device, if there is one to use.
    pub(super) fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.gpu.as_ref()
    }

    /// Threads of the processor.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// The instruction set, or the name of the adapter that `gpu` runs on.
    pub(super) fn kernels(&self, gpu: Option<&Arc<GpuExecutor>>) -> String {
        match gpu {
            Some(exec) => exec.gpu().report().name.clone(),
            None if self.activations == Activations::Int8 => format!("{} int8", self.isa),
            None => self.isa.to_string(),
        }
    }
}

/// An executor on the processor, for what looks on while it computes: always exact.
pub(super) fn observable(part: ModelPart, compute: &Compute) -> Result<Arc<CpuExecutor>, RunError> {
    if compute.device == Device::Gpu {
        return Err(RunError::Usage(
            "--device gpu: calibration looks into every layer and computes on the CPU; use --device cpu"
                .into(),
        ));
    }
    if compute.kv_type != KvType::F16 {
        return Err(RunError::Usage(format!(
            "--kv-type {}: calibration looks at the model as it is, with keys and values in f16",
            compute.kv_type
        )));
    }
    let compute = Compute {
        device: Device::Cpu,
        ..compute.clone()
    };
    let place = Place::open(&compute)?;
    Ok(Arc::new(place.exact().cpu(part)?))
}

#[cfg(all(test, not(feature = "gpu")))]
mod tests {
    use clap::Parser as _;

    use super::super::args::{Cli, Command};
    use super::*;

    fn place(device: &str) -> Result<Place, RunError> {
        let cli = Cli::try_parse_from(["splitrun", "bench", "--device", device]).unwrap();
        let Some(Command::Bench(bench)) = cli.command else {
            panic!("bench was typed");
        };
        Place::open(&bench.compute)
    }

    /// A build without the feature `gpu` says so where a card is asked for, and else computes.
    #[test]
    fn without_its_executor_a_card_is_refused_and_auto_is_the_processor() {
        let error = place("gpu").err().unwrap().to_string();
        for part in ["without its GPU executor", "--device cpu", "feature `gpu`"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
        for device in ["auto", "cpu"] {
            assert!(place(device).unwrap().gpu().is_none());
        }
        assert!(Adapter::all().is_empty());
    }
}
