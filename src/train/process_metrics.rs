//! How a step went at the fastest and the slowest of several processes.
use crate::distributed::Collective;
use crate::report::metrics::ProcessMetrics;
use crate::system::error::Result;
use crate::system::memory::resident_bytes;
use candle_core::{Device, Tensor};
use std::time::Duration;

/// Gathers what a step took at each process: `busy` without waiting for others and data, and `waited` for data. Nothing
/// of one process.
///
/// # Errors
/// A process has failed.
pub fn gather(busy: Duration, waited: Duration, collective: &dyn Collective) -> Result<Option<ProcessMetrics>> {
    if collective.size() == 1 {
        return Ok(None);
    }
    let memory = resident_bytes().unwrap_or(0);
    let mine = [busy.as_secs_f64(), waited.as_secs_f64(), memory as f64, collective.bytes_sent() as f64];
    let all = collective.gather(&Tensor::new(&mine, &Device::Cpu)?)?;
    let all = all.iter().map(|of_rank| Ok(of_rank.to_vec1::<f64>()?)).collect::<Result<Vec<_>>>()?;
    let of = |place: usize| all.iter().map(move |of_rank| of_rank[place]);
    let range = |place: usize| [of(place).fold(f64::INFINITY, f64::min), of(place).fold(0.0, f64::max)];
    let rank_of = |seconds: f64| of(0).position(|busy| busy == seconds).unwrap_or(0);
    let busy = range(0);
    Ok(Some(ProcessMetrics {
        count: all.len(),
        fastest: rank_of(busy[0]),
        slowest: rank_of(busy[1]),
        busy_s: busy,
        data_wait_s: range(1),
        memory_bytes: range(2).map(|bytes| bytes as u64),
        sent_bytes: of(3).sum::<f64>() as u64,
    }))
}
