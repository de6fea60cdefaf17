//! The table's angles.
use super::*;

#[test]
fn angles_are_those_of_rows_and_columns() -> Result<()> {
    let table = RotaryTable::of_grid((2, 3), [2, 4, 2], 100.0, &Device::Cpu)?;
    let cosines = table.cosines.to_vec2::<f32>()?;
    let sines = table.sines.to_vec2::<f32>()?;
    assert_eq!((cosines.len(), cosines[0].len()), (6, 4));
    for (token, (cosines, sines)) in cosines.iter().zip(&sines).enumerate() {
        let (row, column) = ((token / 3) as f32, (token % 3) as f32);
        // Frequencies 100^(−2i/n): 1 for pair 0, and 1/10 for the rows' second.
        for ((cosine, sine), angle) in cosines.iter().zip(sines).zip([0.0, row, row / 10.0, column]) {
            assert!((cosine - angle.cos()).abs() < 1e-6 && (sine - angle.sin()).abs() < 1e-6, "token {token}");
        }
    }
    Ok(())
}

/// Tokens of a table may be at any places, and its first are a table of their own.
#[test]
fn places_may_be_any() -> Result<()> {
    let axes = [2, 4, 2];
    let grid = RotaryTable::of_grid((2, 3), axes, 100.0, &Device::Cpu)?;
    let places = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [7, 1, 1]];
    let table = RotaryTable::of_places(places.into_iter(), axes, 100.0, &Device::Cpu)?;
    let rows = |table: &RotaryTable| table.sines.to_vec2::<f32>();
    assert_eq!(rows(&table.first(4)?)?, rows(&grid)?[..4]);
    assert_eq!(rows(&table.first(9)?)?, rows(&table)?);
    let sines = &rows(&table)?[4];
    assert!((sines[0] - 7f32.sin()).abs() < 1e-6 && sines[1..] == rows(&grid)?[4][1..]);
    Ok(())
}

#[test]
fn tables_that_do_not_fit_are_refused() -> Result<()> {
    let table = RotaryTable::of_grid((2, 2), [2, 2, 2], 100.0, &Device::Cpu)?;
    let x = |tokens, width| {
        Variable::constant(Tensor::zeros((1, tokens, width), candle_core::DType::F32, &Device::Cpu).expect("zeros"))
    };
    assert!(rotary(&x(3, 12), &table).is_err());
    assert!(rotary(&x(4, 10), &table).is_err());
    assert!(rotary(&x(4, 12), &table).is_ok());
    Ok(())
}
