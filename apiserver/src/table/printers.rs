//! Which resource shows which cells. The columns' names and types stand in the facts (`columns.tsv`), by printer;
//! the few that the facts lack stand here.

use keelson_machinery::catalog::{Column, Resource};
use keelson_machinery::value::Value;

use super::Cell::{self, *};
use super::config;

mod core;
mod other;

/// How objects of one resource become rows.
pub(super) struct Printer {
    /// The facts' name for the columns.
    pub columns: &'static str,
    /// Columns that the facts lack, after those that they have.
    pub more_columns: &'static [Column],
    /// One cell for each column.
    pub cells: &'static [Cell],
    /// The row's conditions.
    pub conditions: fn(&Value) -> Option<Value>,
}

const fn column(
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    priority: i32,
) -> Column {
    Column {
        name,
        kind,
        format,
        priority,
    }
}

const NAME: Column = column("Name", "string", "name", 0);
const AGE: Column = column("Age", "string", "", 0);

fn none(_: &Value) -> Option<Value> {
    None
}

const fn printer(columns: &'static str, cells: &'static [Cell]) -> Printer {
    Printer {
        columns,
        more_columns: &[],
        cells,
        conditions: none,
    }
}

const fn printer_of(more_columns: &'static [Column], cells: &'static [Cell]) -> Printer {
    Printer {
        columns: "",
        more_columns,
        cells,
        conditions: none,
    }
}

/// Name and creation time: what all else shows, custom resources included.
const DEFAULT: Printer = printer_of(
    &[NAME, column("Created At", "date", "", 0)],
    &[Name, Made(config::created_at)],
);

const SCALE: Printer = printer(
    "scale",
    &[Name, Int("spec.replicas"), Int("status.replicas"), Age],
);

/// The printer of a resource, or of one of its subresources.
pub(super) fn of(resource: &Resource, subresource: Option<&str>) -> &'static Printer {
    if subresource == Some("scale") {
        return &SCALE;
    }
    all()
        .find(|(group, name, _)| *name == resource.resource && *group == resource.group)
        .map_or(&DEFAULT, |(_, _, printer)| printer)
}
/// Group, resource, printer.
pub(super) type Entry = (&'static str, &'static str, Printer);

/// All resources with a printer of their own.
pub(super) fn all() -> impl Iterator<Item = &'static Entry> {
    core::PRINTERS.iter().chain(other::PRINTERS)
}
