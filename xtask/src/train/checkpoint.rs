//! Training state on disk, so that a run can be stopped and taken up again, and exported at any time.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};

use super::{model::Model, optimizer::Optimizer};

const STEP: &str = "step";

/// Writes a new file and renames it, so that a killed run leaves the previous state.
pub(super) fn save(path: &Path, step: usize, model: &Model, optimizer: &Optimizer) -> Result<()> {
    let mut tensors: HashMap<String, Tensor> = optimizer.state.clone();
    for (name, var) in model.parameters() {
        tensors.insert(name, var.as_detached_tensor());
    }
    tensors.insert(STEP.to_owned(), Tensor::new(step as u32, &Device::Cpu)?);
    let partial = path.with_extension("partial");
    candle_core::safetensors::save(&tensors, &partial)?;
    std::fs::rename(&partial, path)?;
    Ok(())
}

/// Returns the number of steps already done.
pub(super) fn load(path: &Path, model: &Model, optimizer: &mut Optimizer) -> Result<usize> {
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu)
        .with_context(|| format!("failed to read the checkpoint `{}`", path.display()))?;
    for (name, var) in model.parameters() {
        let tensor = tensors.remove(&name).with_context(|| format!("the checkpoint lacks `{name}`"))?;
        var.set(&tensor.to_dtype(DType::F32)?).with_context(|| {
            format!("`{name}` in the checkpoint is of another shape: start again without --resume")
        })?;
    }
    let step = tensors.remove(STEP).context("the checkpoint lacks its step")?.to_scalar::<u32>()?;
    optimizer.state = tensors;
    Ok(step as usize)
}
