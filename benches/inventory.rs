//! The inventory of a folder of many files: seconds and peak memory.
//!
//! `cargo bench --bench inventory -- FOLDER FILES` makes a folder of so many files (photographs, masks and captions in
//! equal parts, none of which is read but the captions), or takes it as it is if it is there.
use seg4diff::config::RunConfig;
use seg4diff::data::{DataSet, Inventory};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [folder, files] = arguments.as_slice() else {
        println!("usage: inventory FOLDER FILES");
        return Ok(());
    };
    if !Path::new(folder).exists() {
        std::fs::create_dir_all(folder)?;
        for number in 0..files.parse::<u64>()? / 3 {
            let path = |end: &str| Path::new(folder).join(format!("photograph_{number:09}{end}"));
            std::fs::write(path(".jpg"), "")?;
            std::fs::write(path("_mask.png"), "")?;
            std::fs::write(
                path(".txt"),
                format!("A photograph that is called {number} and lies in a folder with many others."),
            )?;
        }
    }
    let text =
        format!("output = \"out\"\n[model]\npath = \"model\"\n[data]\nformat = \"folder\"\nsource = [{folder:?}]\n");
    let config = RunConfig::parse(&text, Path::new("bench"), &[])?;
    let started = Instant::now();
    let inventory = Inventory::of(&DataSet::open(&config.data)?)?;
    let seconds = started.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM unknown");
    println!("{inventory}\n{seconds:.1} s, {peak}");
    Ok(())
}
