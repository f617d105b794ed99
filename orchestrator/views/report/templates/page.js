raymixPlots.show(JSON.parse(document.getElementById("figures").textContent));
