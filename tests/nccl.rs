//! A process of a job of one, through NCCL, leaves the bits of a process that knows of no others.
//!
//! It needs a GPU, and `libnccl.so.2` where the system looks for libraries (`LD_LIBRARY_PATH`); `REQUIRE_CUDA=1` demands the
//! GPU.
#![cfg(feature = "nccl")]

mod outcome;
mod smoke_run;

use outcome::Outcome;
use smoke_run::{Run, succeed};

#[test]
fn one_process_through_nccl_leaves_the_bits_of_none() {
    if seg4diff::ops::device::gpu_count() == 0 {
        assert!(std::env::var_os("REQUIRE_CUDA").is_none(), "no GPU");
        return eprintln!("no GPU: nothing is compared");
    }
    let settings = [
        "device=\"auto\"",
        "train.steps=6",
        "train.batch=2",
        "train.accumulate=2",
        "data.resolution=64",
        "checkpoint.every=6",
    ];
    let alone = Run::new(&settings);
    alone.finish(&[]);
    let through = Run::new(&settings);
    let mut command = through.train(&[]);
    for (name, value) in [("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")] {
        command.env(name, value);
    }
    succeed(&mut command);
    Outcome::of(&through, 6).check(&Outcome::of(&alone, 6), "through NCCL");
}
