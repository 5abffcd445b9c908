"""Parts that change how tokens are drawn, by stage `sampling`."""
