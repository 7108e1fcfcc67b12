# fish completion for ckpt: copy this file to ~/.config/fish/completions/
complete --command ckpt --arguments "(env _CKPT_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS=(commandline -cp) ckpt)" --condition "env _CKPT_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=is-args _TYPER_COMPLETE_ARGS=(commandline -cp) ckpt"
