"""One file per family: it registers its layouts, and all that is known of them stands in it. ``layouts`` finds it."""
