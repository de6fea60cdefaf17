//! Renders the sprites of `data/sprites` from Iconify's packages of emoji sets, unpacked side by side.
//!
//! `cargo run --release -- PACKAGES OUT`, where PACKAGES/SET/icons.json are the packages' files.
use resvg::{tiny_skia, usvg};
use std::error::Error;
use std::path::Path;

/// Side of a sprite in pixels.
const SIDE: u32 = 96;

const SETS: [&str; 5] = ["noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "twemoji"];

/// The icon's name in the sets, and the plain word that captions and files have.
const NOUNS: [(&str, &str); 20] = [
    ("cat-face", "cat"),
    ("dog-face", "dog"),
    ("pig-face", "pig"),
    ("panda", "panda"),
    ("lion", "lion"),
    ("penguin", "penguin"),
    ("fish", "fish"),
    ("octopus", "octopus"),
    ("butterfly", "butterfly"),
    ("automobile", "car"),
    ("bus", "bus"),
    ("airplane", "airplane"),
    ("rocket", "rocket"),
    ("sailboat", "boat"),
    ("house", "house"),
    ("evergreen-tree", "tree"),
    ("mushroom", "mushroom"),
    ("red-apple", "apple"),
    ("banana", "banana"),
    ("umbrella", "umbrella"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(packages), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err("usage: sprites PACKAGES OUT".into());
    };
    for set in SETS {
        let text = std::fs::read_to_string(Path::new(&packages).join(set).join("icons.json"))?;
        let icons: serde_json::Value = serde_json::from_str(&text)?;
        let folder = Path::new(&out).join(set);
        std::fs::create_dir_all(&folder)?;
        for (icon, word) in NOUNS {
            render(&icons, icon)?.save_png(folder.join(format!("{word}.png")))?;
        }
    }
    Ok(())
}

fn render(icons: &serde_json::Value, name: &str) -> Result<tiny_skia::Pixmap, Box<dyn Error>> {
    let name = icons["aliases"][name]["parent"].as_str().unwrap_or(name);
    let icon = &icons["icons"][name];
    let body = icon["body"].as_str().ok_or_else(|| format!("no icon {name}"))?;
    let side = |key: &str| icon[key].as_u64().or(icons[key].as_u64()).unwrap_or(16);
    let svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {} {}">{body}</svg>"#,
        side("width"),
        side("height"),
    );
    let tree = usvg::Tree::from_str(&svg, &usvg::Options::default())?;
    let mut pixmap = tiny_skia::Pixmap::new(SIDE, SIDE).ok_or("no memory")?;
    let scale = SIDE as f32 / tree.size().width().max(tree.size().height());
    resvg::render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut pixmap.as_mut());
    Ok(pixmap)
}
