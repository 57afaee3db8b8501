//! splitrun: runs either half of a model that splitconv cut in two.
//!
//! The code reads in the order of a token's life: [`text`] turns a prompt into ids, [`exec`] runs
//! the layers over a [`model`]'s tensors with a [`cache`], [`link`] carries the boundary row to the
//! other half, and [`role`] ties them together. [`measure`] tells what it was worth.

pub mod cache;
pub mod cli;
pub mod exec;
pub mod link;
pub mod measure;
pub mod model;
pub mod role;
pub mod text;
