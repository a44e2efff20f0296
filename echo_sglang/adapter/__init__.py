"""The only bridge to SGLang's scheduler: snapshot in, plan applied, nothing decided here."""
