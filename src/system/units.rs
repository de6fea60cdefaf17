//! Human-readable speeds and durations.

/// A speed: `14.66 images/s`, or below one image a second its inverse: `12.3 s/image`.
pub fn rate(images_per_s: f64) -> String {
    match images_per_s {
        rate if rate >= 1.0 => format!("{rate:.2} images/s"),
        rate if rate > 0.0 && 1.0 / rate < 10.0 => format!("{:.2} s/image", 1.0 / rate),
        rate if rate > 0.0 => format!("{:.1} s/image", 1.0 / rate),
        _ => "no image yet".into(),
    }
}

/// A duration: `3.0 s`, `4 min 12 s`, `2 h 2 min`, `3 d 4 h`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 86400, whole / 3600 % 24, whole / 60 % 60, whole % 60) {
        (0, 0, 0, _) => format!("{seconds:.1} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        let expected = ["3.0 s", "4 min 12 s", "2 h 2 min", "1 h 0 min", "3 d 4 h"];
        assert_eq!([3.04, 251.7, 7321.0, 3599.6, 273_700.0].map(duration), expected);
    }

    #[test]
    fn a_slow_speed_is_the_time_of_an_image() {
        let rates = [14.657, 1.0, 0.9, 0.25, 1.0 / 12.34, 1.0 / 187.0, 0.0, f64::NAN];
        let expected = [
            "14.66 images/s",
            "1.00 images/s",
            "1.11 s/image",
            "4.00 s/image",
            "12.3 s/image",
            "187.0 s/image",
            "no image yet",
            "no image yet",
        ];
        assert_eq!(rates.map(rate), expected);
    }
}
