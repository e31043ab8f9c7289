//! Client tests follow.
